"""A built child beside its parent stored in one precision throughout, as llama.cpp's own quantiser writes it.

`_evaluated` and `_timed` run on workers: each is given one task and returns one result. Nothing of it is kept.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from blocklib.block import Architecture
from blocklib.formats.gguf import as_stored
from blocklib.parent import Parent
from cost_models.analytic import architecture_cost
from cost_models.engines.engines import engine_of
from cost_models.scenario import Scenario
from cost_models.timing.device_lock import alone_on
from cost_models.timing.pair import Comparison, Rounds
from db import models
from db.store import Store
from nas.cluster.shared_files import check_home, check_parent
from nas.cluster.tasks import STARTING, Cluster, Report
from nas.errors import UsageError
from nas.files.home import child_file, home_of
from nas.job.space import precisions
from nas.job.stored import request_of
from nas.scoring.fidelity import Fidelity
from nas.stages.child_file import load_child
from nas.stages.context import Context
from nas.stages.devices import device_of, tensor
from nas.stages.evaluate import Evaluator, perplexity
from nas.stages.prepare import Job
from nas.stages.real_values import Reality
from nas.terminal.progress import bar
from nas.text.token_files import Ids


@dataclass(frozen=True)
class StoredModel:
    """One model in one file. `name` is a precision, or `trial 3`; `bits_per_weight` is of the parent's weights. `kl` is
    to the parent in float32, on the evaluation text, in nats per token. Tokens per second are None where nothing was
    timed, or nothing is decoded."""

    name: str
    file_bytes: int
    bits_per_weight: float
    kl: float
    perplexity: float
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None


def beside_uniform(
    store: Store, search: models.SearchRow, console: Console, time: bool
) -> tuple[models.TrialRow, tuple[StoredModel, ...]]:
    """The search's latest built child, and it and the uniform files, from the largest to the smallest.

    `time`: take times, on the search's own machine. Raises UsageError where the search chose no precisions or built no
    child, StaleSearchError where the parent, the text or the machine has changed.
    """
    if not request_of(search).precisions:
        raise UsageError(f"search {search.name} chose no precisions; give space.precision in its job")
    built = [each for each in store.trials(search.id, where="kl is not None")
             if child_file(home_of(store, search), each.child_key).is_file()]  # fmt: skip
    if not built:
        raise UsageError(f"search {search.name} has no child yet; run `nas search` on its job to its end")
    trial = built[-1]
    with Reality(store, search, console) as reality:
        if time:
            reality.check_machine()
        job = reality.job
        names = precisions(job.request.space, job.parent.shape)
        with Cluster(job.request.ray.address) as cluster:
            check_home(cluster, job.home)
            check_parent(cluster, job.parent)
            context = Context.of(job, store, cluster, console)
            fidelities = _fidelities(context, names)
            times = _times(context, names, child_file(job.home, trial.child_key)) if time else {}
    assert trial.kl is not None
    assert trial.perplexity is not None
    found = [_row(job, f"trial {trial.id}", Architecture.parse(trial.architecture), (trial.kl, trial.perplexity))]
    for name, fidelity in fidelities.items():
        served = replace(job.scenario, dtype=name)
        found.append(_row(job, name, job.parent.architecture, (fidelity.kl, perplexity(fidelity.lm_loss)), served))
    timed = [_with_times(row, times, job.scenario) for row in found]
    return trial, tuple(sorted(timed, key=lambda row: -row.file_bytes))


def _row(
    job: Job, name: str, architecture: Architecture, quality: tuple[float, float], scenario: Scenario | None = None
) -> StoredModel:
    held = architecture_cost(architecture, job.parent.shape, scenario or job.scenario).weight_bytes
    own = architecture_cost(job.parent.architecture, job.parent.shape, job.scenario).parameters
    return StoredModel(name, held, 8 * held / own, *quality)


def _with_times(row: StoredModel, times: Mapping[str, Comparison], scenario: Scenario) -> StoredModel:
    """The child is the control of every comparison; each other model is the other in its own."""
    if not times:
        return row
    compared = times.get(row.name) or next(iter(times.values()))
    is_child = row.name not in times
    prefill_s = compared.prefill.control if is_child else compared.prefill.other
    decode = compared.decode
    decode_s = None if decode is None else decode.control if is_child else decode.other
    return replace(
        row,
        prefill_tokens_per_s=scenario.batch * scenario.prompt_tokens / prefill_s,
        decode_tokens_per_s=None if decode_s is None else scenario.batch / decode_s,
    )


@dataclass(frozen=True)
class _EvaluateTask:
    parent: Parent
    evaluation: Ids
    precisions: Sequence[str]
    device: str


def _fidelities(context: Context, names: Sequence[str]) -> dict[str, Fidelity]:
    job, shared = context.job, context.shared
    with bar(context.console, "evaluate uniform precisions", "models", len(names), STARTING) as shown:
        cpus, gpus = job.request.ray.cpus_per_task, job.request.gpus_per_task
        places = context.cluster.places(cpus, gpus)
        groups = [names[place::places] for place in range(min(places, len(names)))]
        tasks = [_EvaluateTask(shared["parent"], shared["evaluation"], group, device_of(job)) for group in groups]
        heard = shown.expect([len(group) for group in groups])
        found = [some for _, some in context.cluster.run(_evaluated, tasks, cpus=cpus, gpus=gpus, progress=heard)]
    return {name: fidelity for some in found for name, fidelity in some.items()}


def _evaluated(task: _EvaluateTask, report: Report) -> dict[str, Fidelity]:
    parent = task.parent.stored_model()
    evaluator = Evaluator(task.parent.on(task.device).model, tensor(task.evaluation, task.device))
    found: dict[str, Fidelity] = {}
    for name in task.precisions:

        def heard(done: int, total: int) -> None:
            report(len(found) + done / total, len(task.precisions))

        model = as_stored(parent, name).to(task.device)  # type: ignore[arg-type]
        found[name] = evaluator.evaluate(model, heard)
    return found


@dataclass(frozen=True)
class _TimeUniformTask:
    """`child` is the path of the child's file."""

    parent: Parent
    child: Path
    precisions: Sequence[str]
    scenario: Scenario
    rounds: Rounds


def _times(context: Context, names: Sequence[str], child: Path) -> dict[str, Comparison]:
    job, asked = context.job, context.job.request.measure
    rounds = Rounds(least=5, most=100, tolerance=asked.tolerance, seconds=asked.time_limit)
    with bar(context.console, "time uniform precisions", "models", len(names), STARTING) as shown:
        task = _TimeUniformTask(context.shared["parent"], child, names, job.scenario, rounds)
        ((_, found),) = context.cluster.run(_timed, [task], whole_node=True, progress=shown)
    return found


def _timed(task: _TimeUniformTask, report: Report) -> dict[str, Comparison]:
    """Each uniform file in turns with the child's."""
    engine, scenario = engine_of(task.scenario.engine), task.scenario
    parent, child = task.parent.stored_model(), load_child(task.child)
    found: dict[str, Comparison] = {}
    with ExitStack() as held:
        held.enter_context(alone_on(scenario.device, lambda words: report(doing=words)))
        control = held.enter_context(engine.real(child, scenario))
        for name in task.precisions:
            with engine.real(parent, replace(scenario, dtype=name)) as other:
                found[name] = engine.time(control, other, scenario, task.rounds)
            report(len(found), len(task.precisions))
    return found
