"""The stages that fill the library and the store: build every subblock, score every choice. `costs.py` measures them.

Each stage looks up what the store and the library have, gives the rest to workers, and writes each of their results at
once. `_depend`, `_build` and `_score` run on workers: each is given one task and returns one result.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocklib.assemble import parent_part
from blocklib.block import SKIP, Choice, Parallel
from blocklib.distil import Distilled, Progress, Training, distil
from blocklib.kind import Weights
from blocklib.kinds import parameters
from blocklib.library import Library
from blocklib.parent import Parent
from blocklib.precisions.parts import as_floats
from db import models
from nas.cluster.tasks import STARTING, Report
from nas.job.fusion_candidates import Matrix
from nas.planning.plan import layers_per_task
from nas.planning.task_ranges import by_count, by_layers, prefix_tokens
from nas.scoring.block_dependency import block_dependency
from nas.scoring.fidelity import Fidelity
from nas.scoring.replace_one import score
from nas.stages.activations import TextActivations, activations_on
from nas.stages.context import Context
from nas.stages.devices import device_of, plan_inputs, tensor
from nas.stages.prepare import CHECKED
from nas.stages.training_task import TrainingTask, training_activations
from nas.stages.useless_training import useless_training
from nas.terminal.progress import bar, rarely
from nas.text.token_files import Ids

# The tokens to measure block dependency on; more tokens hardly change the matrix.
_DEPENDENCY_TOKENS = 8192


@dataclass(frozen=True)
class _DependTask:
    parent: Parent
    calibration: Ids
    device: str


def measure_dependency(context: Context) -> Matrix:
    """How much each block of the parent depends on each before it."""
    job, shared = context.job, context.shared
    gpus = 1 if job.request.gpus_per_task else 0
    with bar(context.console, "block dependency", "tokens", doing=STARTING) as shown:
        task = _DependTask(shared["parent"], shared["calibration"], device_of(job))
        ((_, matrix),) = context.cluster.run(_depend, [task], gpus=gpus, whole_node=True, progress=shown)
    return matrix


def _depend(task: _DependTask, report: Report) -> Matrix:
    sequences = max(1, _DEPENDENCY_TOKENS // task.calibration.shape[1])
    ids_BT = tensor(task.calibration[:sequences], task.device)
    return block_dependency(task.parent.on(task.device).model, ids_BT, report)


@dataclass(frozen=True)
class Building:
    """One subblock to build: its key in the library, and how it is trained."""

    choice: Choice
    key: str
    training: Training


@dataclass(frozen=True)
class _BuildTask(TrainingTask):
    """The subblocks to build."""

    work: Sequence[Building]
    least_squares: bool


@dataclass(frozen=True)
class BuildRecord:
    """A subblock that was built: the columns of its row."""

    key: str
    choice: str
    tokens: int
    seconds: float
    loss_first_weights: float
    loss_least_squares: float | None = None
    loss_trained: float | None = None
    curve: Sequence[Sequence[float]] = ()
    usage: dict[str, Any] | None = None


def build_library(context: Context) -> int:
    """First weights, least squares and BLD for every subblock not yet in the library. Returns how many were built. Says
    how many of all subblocks of the job training left no better than they began."""
    job, store = context.job, context.store
    keys = {part: job.build_key(part) for part in job.to_build}
    built_now = _build_missing(context, keys)
    if line := useless_training(store.distillations(list(keys.values())).values()):
        context.console.print(line, soft_wrap=True, highlight=False)
    return built_now


def _build_missing(context: Context, keys: Mapping[Choice, str]) -> int:
    job, store = context.job, context.store
    known = store.distillations(list(keys.values()))
    missing = [part for part, key in keys.items() if key not in known or not job.library.has(part, key)]
    if not missing:
        return 0
    work = {part: Building(part, keys[part], job.training(part)) for part in missing}
    for records in built(context, work, job.library.root, "distil blocks"):
        store.add_distillations([models.DistillationRow(**vars(record)) for record in records])
    shutil.rmtree(context.folder.path / "distillation")
    return len(missing)


def built(context: Context, work: Mapping[Choice, Building], root: Path, name: str) -> Iterator[Sequence[BuildRecord]]:
    """Build subblocks into the library at `root`, on workers; their records, those of each task as it ends. `name` is
    what is shown meanwhile."""
    job, shared, distill, resources = context.job, context.shared, context.job.request.distill, context.job.request.ray
    # Each task passes over the text for its own layers. So the work of all tasks is that of one task for all layers.
    most = max(building.training.tokens for building in work.values())
    with bar(context.console, "start workers", doing=STARTING):
        groups = shares(context, "distil", list(work), lambda part: part.span)
    # The tokens that all tasks together would run the parent over, each for itself.
    alone = prefix_tokens(groups, most, job.parent.shape.layers)
    activations = training_activations(context, alone)
    with bar(context.console, name, "tokens", most or None, STARTING) as shown:
        tasks = [
            _BuildTask(
                shared["parent"],
                shared["calibration"],
                shared["distillation"],
                shared["score"],
                activations,
                distill.batch,
                root,
                device_of(job),
                [work[part] for part in group],
                distill.least_squares,
            )
            for group in groups
        ]
        heard = shown.expect(len(groups) * [most / len(groups)])
        for _, records in context.cluster.run(
            _build, tasks, cpus=resources.cpus_per_task, gpus=job.request.gpus_per_task, progress=heard
        ):
            yield records


def _build(task: _BuildTask, report: Report) -> tuple[BuildRecord, ...]:
    """Build the missing subblocks. Returns the records of all, read back from their files, so that a restarted task has
    them all."""
    library = Library(task.root)
    keys = {one.choice: one.key for one in task.work}
    missing = {one.choice: one.training for one in task.work if not library.has(one.choice, one.key)}
    if missing:
        parent = task.parent.on(task.device)
        at_work = distil(
            parent, missing, task.texts(parent), least_squares=task.least_squares,
            doing=lambda words: report(doing=words), heard=rarely(report, 1.0),
        )  # fmt: skip
        for event in at_work:
            if isinstance(event, Progress):
                report(event.done_tokens, event.total_tokens)
            else:
                metadata = {"format": "pt", "distillation": json.dumps(vars(_record(event, keys[event.choice])))}
                library.save(event.choice, keys[event.choice], event.weights, metadata)
    return tuple(BuildRecord(**json.loads(library.metadata(part, key)["distillation"])) for part, key in keys.items())


def _record(distilled: Distilled, key: str) -> BuildRecord:
    return BuildRecord(
        key=key,
        choice=str(distilled.choice),
        tokens=distilled.tokens,
        seconds=distilled.seconds,
        loss_first_weights=distilled.loss_first_weights,
        loss_least_squares=distilled.loss_least_squares,
        loss_trained=distilled.loss_trained,
        curve=[[float(tokens), loss] for tokens, loss in distilled.curve],
        usage=None if distilled.usage is None else vars(distilled.usage),
    )


@dataclass(frozen=True)
class _ScoreTask:
    """`work` is choices, each with the keys of its parts in the library, whose folder is `root`."""

    parent: Parent
    ids: Ids
    activations: TextActivations
    root: Path
    work: Mapping[Choice, Mapping[Choice, str]]
    device: str


def score_choices(context: Context, choices: Iterable[Choice]) -> int:
    """Measure the replace-1 scores of these choices that are not known yet. Returns how many were scored."""
    job, store, shared = context.job, context.store, context.shared
    keys = {choice: job.measured_score_key(choice) for choice in choices}
    known = store.scores(list(keys.values()))
    missing = [choice for choice, key in keys.items() if key not in known]
    if not missing:
        return 0
    shape = job.parent.shape
    head, slots = shape.vocabulary * shape.hidden, 2 * shape.layers
    per_slot = (parameters(job.parent.architecture, shape) - shape.fixed_parameters) / slots
    resources, text = job.request.ray, job.tokens.score.size
    activations = activations_on(context, "score", CHECKED)
    with bar(context.console, "score options", "tokens", text, STARTING) as shown:
        # The number of parameters between the start of a choice and the logits.
        groups = shares(context, "score", missing, lambda choice: head + per_slot * (slots - choice.first_slot % slots))
        tasks = [
            _ScoreTask(
                shared["parent"],
                shared["score"],
                activations,
                job.library.root,
                {choice: job.built_keys([choice]) for choice in group},
                device_of(job),
            )
            for group in groups
        ]
        heard = shown.expect(len(groups) * [text / len(groups)])
        for index, found in context.cluster.run(
            _score, tasks, cpus=resources.cpus_per_task, gpus=job.request.gpus_per_task, progress=heard
        ):
            store.add_scores([
                models.ScoreRow(key=keys[choice], choice=str(choice), **vars(found[choice])) for choice in groups[index]
            ])  # fmt: skip
    return len(missing)


def _score(task: _ScoreTask, report: Report) -> Mapping[Choice, Fidelity]:
    parent, library = task.parent.on(task.device), Library(task.root)
    weights = {choice: choice_weights(parent, library, choice, keys) for choice, keys in task.work.items()}
    for event in score(parent, weights, task.activations.of_all(parent, task.ids), rarely(report, 1.0)):
        if not isinstance(event, Progress):
            return event
    raise AssertionError("scoring ended without scores")


def choice_weights(parent: Parent, library: Library, choice: Choice, keys: Mapping[Choice, str]) -> Weights:
    """The tensors of every part of `choice`: from the library by `keys`, from the parent, or none where skipped.

    Named as `blocklib.stream.variant` wants them; of tables, by their names in the model.
    """
    weights: dict[str, Any] = {}
    for index, part in enumerate(choice.parts):
        block = f"{index // 2}." if isinstance(choice.what, Parallel) else ""
        held: Weights = {}
        if part in keys:
            held = library.load(part, keys[part])
            held = as_floats(part, held, parent.shape) if part.precision else held
        elif part.what != SKIP:
            held = parent_part(parent, part.layer, part.role)
        weights |= {f"{block}{name}": values.to(parent.device) for name, values in held.items()}
    return weights


def _layers_that_fit(context: Context, stage: str) -> int | None:
    """How many layers a task has for the stage to fit this machine; None: any, or it is not known."""
    return layers_per_task(plan_inputs(context.job), stage) if context.cluster.is_here else None


def shares(
    context: Context, stage: str, choices: Sequence[Choice], work: Callable[[Choice], float]
) -> list[list[Choice]]:
    """The choices divided between tasks: as many tasks as there are places, or as the job says, or as memory asks for
    in a stage, "distil" or "score"."""
    request = context.job.request
    asked = request.ray
    if layers := asked.layers_per_task or _layers_that_fit(context, stage):
        return by_count(choices, layers)
    return by_layers(choices, context.cluster.places(asked.cpus_per_task, request.gpus_per_task), work)
