"""A trial made real: the child assembled, healed, evaluated and timed beside its parent, and exported.

Each step leaves something whole behind (the child's file, columns of the trial's row, the exported folder) and is not
done again where that is there. `_described`, `_make` and `_time` run on workers.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from blocklib.assemble import assemble
from blocklib.block import Architecture
from blocklib.library import Library
from blocklib.model import PuzzleNasForCausalLM
from blocklib.packed import PackedParent, unpack
from cost_models.analytic import architecture_cost
from cost_models.device_lock import alone_on
from cost_models.hardware import describe
from cost_models.meter import meter_of
from cost_models.metrics import METRICS
from cost_models.quality import Quality
from cost_models.scenario import Scenario
from cost_models.timing import Comparison, Rounds, time_models
from db import models
from db.store import Store
from nas.budget import Times, limits_of, reached, times_of, verdict
from nas.child_times import timed_until_decided, times_in
from nas.children import found_with, save_child
from nas.cluster import STARTING, Cluster, Report
from nas.costs import quality_of
from nas.evaluate import evaluate, perplexity
from nas.healing import Healing
from nas.home import child_file
from nas.job import Job
from nas.progress import bar, rarely
from nas.request import Request
from nas.stages import Ids, Shared, choice_weights, device_of, gpus_to_time, tensor
from nas.units import Limit, needs_meter

Built = Sequence[tuple[str, str]]
"""The parts that a child takes from the library: choices and their keys."""


def _built(job: Job, trial: models.Trial) -> Built:
    choices = Architecture.parse(trial.architecture).choices()
    return [(str(part), job.build_key(part)) for choice in choices for part in job.library_parts(choice)]


def hardware_of(request: Request, cluster: Cluster) -> str:
    """The machine that times are taken on, as `describe` names it: this one, or a node of a cluster."""
    asked = (request.scenario.device, request.scenario.threads)
    if cluster.is_here:
        return describe(*asked)
    task = (*asked, needs_meter(request.budget))
    ((_, found),) = cluster.run(_described, [task], gpus=int(request.scenario.device == "cuda"), whole_node=True)
    return str(found)


def _described(device: str, threads: int | None, is_metered: bool, report: Report) -> str:
    if is_metered:
        meter_of(device)  # before hours of work rather than after
    return describe(device, threads)


def healing_of(job: Job) -> Healing | None:
    """How the request heals children; None where it does not."""
    asked = job.request.heal
    if asked is None:
        return None
    tokens = job.tokens.distillation.size if asked.tokens is None else asked.tokens
    return Healing(tokens, asked.batch, asked.learning_rate, asked.warmup, asked.hidden_weight)


def healing_key(job: Job) -> dict[str, Any] | None:
    """The part of a trial's key that names its healing."""
    healing = healing_of(job)
    return None if healing is None else vars(healing) | {"text": job.tokens.digest("distillation")}


def made(
    job: Job, store: Store, cluster: Cluster, shared: Shared, trial: models.Trial, console: Console
) -> models.Trial:
    """The trial with its child built, healed and evaluated. Works only where that is not done."""
    trial = store.trial_with_twins(trial.id)
    if trial.kl is not None and child_file(job.home, trial.child_key).is_file():
        return trial
    return _made(job, store, cluster, shared, trial, console)


def timed(
    job: Job,
    store: Store,
    cluster: Cluster,
    shared: Shared,
    trial: models.Trial,
    console: Console,
    remeasure: bool = False,
) -> models.Trial:
    """The trial timed beside its parent. Healing changes no shape, so this need not wait for it.

    `remeasure`: time it again if its times decide nothing about its budget, or were taken under unknown or too much CPU
    contention.
    """
    if is_timed(trial) and not (remeasure and _is_bad(job, trial)):
        return trial
    return _timed(job, store, cluster, shared, trial, console)


def _made(
    job: Job, store: Store, cluster: Cluster, shared: Shared, trial: models.Trial, console: Console
) -> models.Trial:
    healing = healing_of(job)
    file, checkpoints = child_file(job.home, trial.child_key), job.home / "checkpoints" / trial.child_key
    gpus = 1 if job.request.gpus_per_task else 0
    with bar(console, "heal child" if healing else "assemble child", "tokens", doing=STARTING) as shown:
        task = (
            shared["parent"], shared["distillation"], shared["evaluation"], str(job.library.root), trial.architecture,
            _built(job, trial), healing, str(file), str(checkpoints), device_of(job),
        )  # fmt: skip
        ((_, found),) = cluster.run(_make, [task], gpus=gpus, whole_node=True, progress=shown)
    before, after = found["before"], found["after"]
    return store.update_trial(
        trial.id,
        kl_before_heal=before["kl"],
        lm_loss_before_heal=before["lm_loss"],
        kl=after["kl"],
        lm_loss=after["lm_loss"],
        perplexity=perplexity(after["lm_loss"]),
        top1_agreement=after["top1_agreement"],
        hidden_cosine=after["hidden_cosine"],
        heal_tokens=healing.tokens if healing else 0,
        details={"parent": {"lm_loss": found["parent"]["lm_loss"], "vocabulary": job.parent.shape.vocabulary}},
    )


def _make(
    packed: PackedParent,
    distillation: Ids,
    evaluation: Ids,
    root: str,
    architecture: str,
    built: Built,
    healing: Healing | None,
    file: str,
    checkpoints: str,
    device: str,
    report: Report,
) -> dict[str, Any]:
    """Assemble, evaluate, heal, evaluate, write the file. The file holds the results, too: a task that runs again reads
    them, and so does one that waited for the same child. Two at once would remove each other's checkpoints."""
    path = Path(file)
    Path(checkpoints).parent.mkdir(parents=True, exist_ok=True)
    with _alone(f"{checkpoints}.lock", report):
        if path.is_file():
            return found_with(path)
        parent, library, keys = unpack(packed, device), Library(Path(root)), dict(built)
        heldout = tensor(evaluation, device)
        child = assemble(
            parent, Architecture.parse(architecture), lambda choice: choice_weights(parent, library, choice, keys)
        )

        def evaluated(model: PuzzleNasForCausalLM, what: str) -> dict[str, Any]:
            def heard(done: int, total: int) -> None:
                report(doing=f"evaluating {what}, {done:,} of {total:,} tokens")

            heard(0, heldout.numel())
            return vars(evaluate(parent.model, model, heldout, heard=heard))

        found = {"parent": evaluated(parent.model, "the parent")}
        found["before"] = evaluated(child, "the child before healing" if healing else "the child")
        if healing is not None:
            report(doing="loading the trainer")
            from nas.heal import heal  # It takes seconds to load, and only here.

            child = deepcopy(child)
            for event in heal(parent.model, child, tensor(distillation, device), healing, Path(checkpoints)):
                report(event.done_tokens, event.total_tokens)
        found["after"] = evaluated(child, "the healed child") if healing else found["before"]
        save_child(path, child, found)
        shutil.rmtree(checkpoints, ignore_errors=True)
        return found


@contextmanager
def _alone(lock: str, report: Report) -> Iterator[None]:
    """For as long as no other process has the lock."""
    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        report(doing="waiting for another process, which builds the same child")
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _timed(
    job: Job, store: Store, cluster: Cluster, shared: Shared, trial: models.Trial, console: Console
) -> models.Trial:
    # The last word on a child is worth more time than one of many measurements.
    asked = job.request.measure
    rounds = Rounds(least=10, most=100, tolerance=asked.tolerance / 2, seconds=3 * asked.time_limit)
    with bar(console, "measure child", "s at most", doing=STARTING) as shown:
        task = (shared["parent"], str(job.library.root), trial.architecture, _built(job, trial), job.scenario, rounds,
                limits_of(trial), quality_of(job))  # fmt: skip
        ((_, found),) = cluster.run(_time, [task], gpus=gpus_to_time(job), whole_node=True, progress=shown)
    held = architecture_cost(Architecture.parse(trial.architecture), job.parent.shape, job.scenario)
    totals = held.totals(job.scenario)
    counted = {metric.column: totals[metric.column] for metric in METRICS.values() if not metric.is_measured}
    columns = {name: value for name, value in found.items() if name != "parent"}
    return store.update_trial(
        trial.id,
        **columns,
        **counted,
        details={"parent": found["parent"]},
    )


def is_timed(trial: models.Trial) -> bool:
    """Whether it was timed, and every metric was measured that its budget limits."""
    times = times_of(trial)
    return trial.latency_ratio is not None and all(reached(times, asked) for asked in limits_of(trial))


def _is_bad(job: Job, trial: models.Trial) -> bool:
    """Whether what was timed of it is better timed again."""
    allowed, times = job.request.measure.contention_allowed, times_of(trial)
    if trial.contention is None or trial.contention > allowed:
        return True
    return "undecided" in [verdict(times, asked, allowed) for asked in limits_of(trial)]


def _time(
    packed: PackedParent,
    root: str,
    architecture: str,
    built: Built,
    scenario: Scenario,
    rounds: Rounds,
    budget: Sequence[Limit],
    quality: Quality,
    report: Report,
) -> Times:
    """Columns of the trial: the child timed against its parent, interleaved, in the scenario's dtype on its device; and
    again, as long as there is patience, where that does not decide whether it is within the budget."""
    meter = meter_of(scenario.device) if needs_meter(budget) else None
    parent, library, keys = unpack(packed), Library(Path(root)), dict(built)
    child = assemble(
        parent, Architecture.parse(architecture), lambda choice: choice_weights(parent, library, choice, keys)
    )
    where: dict[str, Any] = {"device": scenario.device, "dtype": getattr(torch, scenario.dtype)}
    pair = deepcopy(parent.model).to(**where), deepcopy(child).to(**where)

    def once(why: str) -> Comparison:
        # A message takes a moment of the machine that is timed.
        heard = rarely(lambda done, s: report(min(s, rounds.seconds), rounds.seconds, f"{why}{done} rounds"))
        return time_models(*pair, scenario, rounds, heard=heard, meter=meter)

    with alone_on(scenario.device, lambda words: report(doing=words)):
        report(doing="first passes")
        return times_in(timed_until_decided(once, budget, quality))
