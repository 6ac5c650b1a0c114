"""The child of a trial: assembled, healed, evaluated, timed beside its parent, and exported.

Each step has one result (the child's file, columns of the trial's row, the exported folder) and is skipped if that
exists. `_described`, `_make` and `_time` run on workers: each gets one task and returns one result.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from blocklib.kinds import parameters, parent_architecture
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, computing, in_type
from blocklib.precisions.layer_checkpoints import LayerCheckpoints
from blocklib.precisions.round_model import RoundingText, Stored, round_model
from blocklib.precisions.train_layer import LayerTraining
from blocklib.precisions.train_rounded import hold, settle
from blocklib.products import multiply_in
from blocklib.resident import is_held_whole
from cost_models.analytic import architecture_cost
from cost_models.energy.meter import meter_of
from cost_models.engines.engines import describe, engine_of
from cost_models.metrics import METRICS
from cost_models.scenario import Scenario
from cost_models.timing.device_lock import alone_on
from cost_models.timing.pair import Comparison, Rounds
from cost_models.timing.quality import Quality
from db import models
from nas.cluster.tasks import STARTING, Cluster, Report
from nas.files.home import child_file, losses_folder
from nas.files.lock import alone
from nas.job.request import Request
from nas.job.scenario import scenario_of
from nas.job.training import RoundTraining
from nas.job.units import Limit, needs_meter
from nas.planning.plan import needs_recomputing
from nas.scoring.fidelity import Fidelity
from nas.solve.budget_loop import Times, limits_of, reached, times_of, verdict
from nas.stages.child_file import found_with, save_child
from nas.stages.child_parts import ChildParts
from nas.stages.child_times import timed_until_decided, times_in
from nas.stages.context import Context
from nas.stages.costs import quality_of
from nas.stages.devices import device_of, gpus_to_time, plan_inputs, tensor
from nas.stages.evaluate import Evaluations, Evaluator, perplexity
from nas.stages.heal_settings import Healing, HealingRun
from nas.stages.heal_workers import WAITS, HealTask, heal_together
from nas.stages.prepare import Job
from nas.stages.sample import sample
from nas.terminal.progress import bar, rarely
from nas.text.token_files import Ids

Curve = tuple[tuple[float, float], ...]
"""Points of tokens and loss."""


@dataclass(frozen=True)
class _DescribeTask:
    scenario: Scenario
    is_metered: bool


def hardware_of(request: Request, cluster: Cluster) -> str:
    """The machine that times are taken on, as `describe` names it: this one, or a node of a cluster."""
    scenario = scenario_of(request)
    if cluster.is_here:
        return describe(scenario)
    task = _DescribeTask(scenario, needs_meter(request.budget))
    ((_, found),) = cluster.run(_described, [task], gpus=int(scenario.device == "cuda"), whole_node=True)
    return found


def _described(task: _DescribeTask, report: Report) -> str:
    if task.is_metered:
        meter_of(task.scenario.device)  # before hours of work
    return describe(task.scenario)


def healing_of(job: Job) -> Healing | None:
    """The request's settings of healing; None if it does not heal."""
    asked = job.request.heal
    if asked is None:
        return None
    tokens = job.tokens.distillation.size if asked.tokens is None else asked.tokens
    return Healing(tokens, asked.batch, asked.learning_rate, asked.warmup, asked.hidden_weight, asked.lora_rank)


def healing_key(job: Job) -> dict[str, Any] | None:
    """The part of a trial's key that names its healing, and the training of its layers through their rounding."""
    healing, asked = healing_of(job), job.request.round
    if healing is None and not asked.tokens:
        return None
    through = {"rounding": "through"} if job.request.heals_through_rounding else {}
    trained = {"round": asked.model_dump(mode="json")} if asked.tokens else {}
    return (healing.key() if healing else {}) | {"text": job.tokens.digest("distillation")} | through | trained


def made(context: Context, trial: models.TrialRow) -> models.TrialRow:
    """The trial with its child built, healed and evaluated. Does only the missing work."""
    trial = context.store.trial_with_twins(trial.id)
    if trial.kl is not None and child_file(context.job.home, trial.child_key).is_file():
        return trial
    return _made(context, trial)


def timed(context: Context, trial: models.TrialRow, remeasure: bool = False) -> models.TrialRow:
    """The trial timed beside its parent. Healing changes no shape, so this need not wait for it.

    `remeasure`: time it again if its times leave the verdict on its budget undecided, or if the CPU contention is
    unknown or too high.
    """
    if is_timed(trial) and not (remeasure and _is_bad(context.job, trial)):
        return trial
    return _timed(context, trial)


@dataclass(frozen=True)
class _ChildTask:
    """`file` is the path of the child, `checkpoints` the folder of an unfinished rounding or healing; `batch` sequences
    of the calibration text run at a time where weights are rounded. `is_through`: they are healed through their
    rounding; `round`: how layers are trained through it. `is_healed`: several workers have healed it, and their last
    checkpoint is there."""

    parent: Parent
    calibration: Ids
    distillation: Ids
    evaluation: Ids
    parts: ChildParts
    healing: Healing | None
    file: Path
    checkpoints: Path
    device: str
    batch: int
    is_through: bool
    round: RoundTraining
    run: HealingRun
    is_healed: bool


def _made(context: Context, trial: models.TrialRow) -> models.TrialRow:
    job, shared = context.job, context.shared
    healing = healing_of(job)
    file, checkpoints = child_file(job.home, trial.child_key), job.home / "checkpoints" / trial.child_key
    gpus, parts, run = 1 if job.request.gpus_per_task else 0, ChildParts.of(job, trial), _healing_run(context, trial)
    workers = job.request.heal.workers if job.request.heal else 1
    with bar(context.console, "heal child" if healing else "assemble child", "tokens", doing=STARTING) as shown:
        if healing is not None and workers > 1:
            share = HealTask(shared["parent"], shared["distillation"], parts, healing, run, checkpoints, device_of(job))
            heal_together(context.cluster, share, file, workers, shown)
        task = _ChildTask(
            shared["parent"], shared["calibration"], shared["distillation"], shared["evaluation"],
            parts, healing, file, checkpoints, device_of(job), job.request.distill.batch,
            job.request.heals_through_rounding, job.request.round, run, is_healed=workers > 1,
        )  # fmt: skip
        ((_, found),) = context.cluster.run(_make, [task], gpus=gpus, whole_node=True, progress=shown)
    before, after = found.before, found.after
    return context.store.update_trial(
        trial.id,
        kl_before_heal=before.kl,
        lm_loss_before_heal=before.lm_loss,
        kl=after.kl,
        lm_loss=after.lm_loss,
        perplexity=perplexity(after.lm_loss),
        top1_agreement=after.top1_agreement,
        hidden_cosine=after.hidden_cosine,
        heal_tokens=healing.tokens if healing else 0,
        round_tokens=job.request.round.tokens,
        heal_curve=[list(point) for point in found.curve] or None,
        details={"parent": {"lm_loss": found.parent.lm_loss, "vocabulary": job.parent.shape.vocabulary}},
    )


def _healing_run(context: Context, trial: models.TrialRow) -> HealingRun:
    asked = context.job.request.heal
    if asked is None:
        return HealingRun()
    reports = losses_folder(context.job.home, trial.child_key)
    return HealingRun(_recomputes(context), asked.accumulate, asked.checkpoint_every, asked.report_to, reports)


def _recomputes(context: Context) -> bool:
    """As the job says; else where activations would not fit this machine. It changes no result."""
    job, asked = context.job, context.job.request.heal
    if asked is None or asked.recompute is not None or not context.cluster.is_here:
        return asked is not None and bool(asked.recompute)
    return needs_recomputing(plan_inputs(job))


def _make(task: _ChildTask, report: Report) -> Evaluations:
    """Assemble, evaluate, heal, evaluate, write the file. The file holds the results too: a task that runs again reads
    them, and so does a task that waited for the same child. Two tasks at once would remove each other's checkpoints."""
    task.checkpoints.parent.mkdir(parents=True, exist_ok=True)
    with alone(f"{task.checkpoints}.lock", partial(report, doing=WAITS)):
        if task.file.is_file():
            return Evaluations.of(found_with(task.file))
        parent, heldout = task.parent.on(task.device), tensor(task.evaluation, task.device)
        evaluator = Evaluator(parent.model, heldout)

        def evaluated(model: PuzzleNasForCausalLM, what: str) -> Fidelity:
            def heard(done: int, total: int) -> None:
                report(doing=f"evaluating {what}, {done:,} of {total:,} tokens")

            heard(0, heldout.numel())
            return evaluator.evaluate(model, heard)

        own = evaluated(parent.model, "the parent")
        finished = _finished(parent, task, evaluated, report)
        running = computing(finished.child, parent.dtype, parent.products)
        after = evaluated(running, "the healed child" if task.healing else "the child")
        report(doing="a sentence by the child")
        found = Evaluations(own, finished.before or after, after, finished.curve, sample(running, heldout))
        save_child(task.file, finished.child, found.plain(), finished.stored)
        shutil.rmtree(task.checkpoints, ignore_errors=True)
        return found


@dataclass(frozen=True, eq=False)
class _Finished:
    """A child, its rounded matrices, how far it was from the parent `before` it was healed, and the losses of healing;
    None and none: it was not."""

    child: PuzzleNasForCausalLM
    stored: Stored
    before: Fidelity | None
    curve: Curve


def _finished(
    parent: Parent, task: _ChildTask, evaluated: Callable[[PuzzleNasForCausalLM, str], Fidelity], report: Report
) -> _Finished:
    """The child healed and rounded as the task says. It is rounded anew, each layer on what the rounded ones before it
    make, from the weights before any was rounded. Before healing it is as the library has it, rounded too, unless it
    is healed through its rounding: then it is what healing begins with."""
    rounds = task.parts.architecture != task.parts.architecture.unrounded
    heals_through = rounds and task.is_through
    running = partial(computing, dtype=parent.dtype, products=parent.products)
    child, before = task.parts.unrounded(parent), None
    curve: Curve = ()
    if task.healing is not None and not heals_through:
        before = evaluated(running(task.parts.assembled(parent)), "the child before healing")
        child = multiply_in(parent.products, _own_copy(parent, child, task))
        curve = _heal(parent, child, task, task.healing, report)
    if not rounds:
        return _Finished(child, {}, before, curve)

    def heard(done: int, layers: int) -> None:
        report(doing=f"rounding the child, {done} of {layers} layers")

    report(doing="rounding the child")
    text = RoundingText(tensor(task.calibration, task.device), task.batch, _layer_training(task))
    checkpoints = LayerCheckpoints(task.checkpoints / "rounded")
    rounded, stored = round_model(child, task.parts.architecture, text, heard=heard, checkpoints=checkpoints)
    if task.healing is not None and heals_through:
        before = evaluated(rounded, "the child before healing")
        hold(rounded, stored)
        curve = _heal(parent, rounded, task, task.healing, report)
        stored = settle(rounded, stored)
    return _Finished(rounded, stored, before, curve)


def _own_copy(parent: Parent, child: PuzzleNasForCausalLM, task: _ChildTask) -> PuzzleNasForCausalLM:
    """A copy to be trained, in the type that the parent computes in. The layers of a child that several workers have
    healed stay in main memory, where the device does not hold them: `computing` takes each to the device."""
    size = torch.empty((), dtype=parent.dtype).element_size()
    needed = sum(size * parameter.numel() for parameter in child.parameters())
    if not task.is_healed or is_held_whole(needed, torch.device(task.device)):
        return in_type(child, parent.dtype, copy=True)
    copy = in_type(child, parent.dtype, device="cpu", copy=True)
    for table in (copy.get_input_embeddings(), copy.lm_head):
        table.to(task.device)
    return copy


def _layer_training(task: _ChildTask) -> LayerTraining | None:
    """How layers are trained through their rounding: on the end of the text, since its beginning calibrates."""
    asked = task.round
    if not asked.tokens:
        return None
    sequences = asked.tokens // task.distillation.shape[1]
    return LayerTraining(tensor(task.distillation[-sequences:], task.device), asked.batch, asked.learning_rate)


def _heal(parent: Parent, child: PuzzleNasForCausalLM, task: _ChildTask, healing: Healing, report: Report) -> Curve:
    report(doing="loading the trainer")
    from nas.stages.heal import heal, load_healed, loss_curve  # It takes seconds to load, and only here.

    text = tensor(task.distillation, "cpu")  # the trainer takes each batch to the device
    if task.is_healed:
        load_healed(child, healing, task.checkpoints)
    else:
        for event in heal(parent.model, child, text, healing, task.checkpoints, task.run):
            report(event.done_tokens, event.total_tokens)
    return loss_curve(task.checkpoints, text, healing)


@dataclass(frozen=True)
class _TimeTask:
    parent: Parent
    parts: ChildParts
    scenario: Scenario
    rounds: Rounds
    budget: Sequence[Limit]
    quality: Quality


def _timed(context: Context, trial: models.TrialRow) -> models.TrialRow:
    job = context.job
    # The final time of a child is worth more effort than one of many measurements.
    asked = job.request.measure
    rounds = Rounds(least=10, most=100, tolerance=asked.tolerance / 2, seconds=3 * asked.time_limit)
    with bar(context.console, "measure child", "s at most", doing=STARTING) as shown:
        parent, parts = context.shared["parent"], ChildParts.of(job, trial)
        task = _TimeTask(parent, parts, job.scenario, rounds, limits_of(trial), quality_of(job))
        ((_, times),) = context.cluster.run(_time, [task], gpus=gpus_to_time(job), whole_node=True, progress=shown)
    shape = job.parent.shape
    held = architecture_cost(parts.architecture, shape, job.scenario)
    totals = held.totals(job.scenario, parameters(parent_architecture(shape), shape))
    counted = {metric.column: totals[metric.column] for metric in METRICS.values() if not metric.is_measured}
    return context.store.update_trial(
        trial.id, **times.child, contention=times.contention, **counted, details={"parent": dict(times.parent)}
    )


def is_timed(trial: models.TrialRow) -> bool:
    """Whether the trial was timed, and every metric in its budget was measured."""
    times = times_of(trial)
    return trial.latency_ratio is not None and all(reached(times, asked) for asked in limits_of(trial))


def _is_bad(job: Job, trial: models.TrialRow) -> bool:
    """Whether the trial's times should be measured again."""
    allowed, times = job.request.measure.contention_allowed, times_of(trial)
    if trial.contention is None or trial.contention > allowed:
        return True
    return "undecided" in [verdict(times, asked, allowed) for asked in limits_of(trial)]


def _time(task: _TimeTask, report: Report) -> Times:
    """Columns of the trial: the child is timed in turns with its parent, in the scenario's dtype on its device. If that
    leaves the verdict undecided, it is timed again until the patience is used up."""
    scenario, rounds = task.scenario, task.rounds
    engine = engine_of(scenario.engine, meter_of(scenario.device) if needs_meter(task.budget) else None)
    parent = task.parent

    # No model is held but in the engine.
    with (
        alone_on(scenario.device, lambda words: report(doing=words)),
        engine.real(parent.stored_model(), scenario) as control,
        engine.real(task.parts.assembled(parent), scenario) as other,
    ):

        def once(why: str) -> Comparison:
            # A message uses the machine that is being timed.
            heard = rarely(lambda done, s: report(min(s, rounds.seconds), rounds.seconds, f"{why}{done} rounds"))
            return engine.time(control, other, scenario, rounds, heard)

        report(doing="first passes")
        return times_in(timed_until_decided(once, task.budget, task.quality))
