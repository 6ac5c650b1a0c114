"""Tune the learning rate of BLD for a parent: train some subblocks of a few layers at several rates.

The trials do what a search does: first weights by its tasks, once for all; then, for each rate, its training on the
parent's cached activations, in one task that has a node for itself. `_try` runs on a worker. Every trial is a row, so
that a tune that was killed goes on with the trials it has.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console

from blocklib.block import Choice
from blocklib.distil import HeldOutLosses, Progress, Training, train
from blocklib.errors import NotFiniteError
from blocklib.kinds import is_trainable
from blocklib.library import Library
from db.store import Store
from db.tuning import TuneState, TuneTrialRow
from nas.cluster.shared_files import check_home, check_parent
from nas.cluster.tasks import STARTING, Cluster, Report
from nas.errors import JobError, TuningError, UsageError
from nas.job.digest import digest
from nas.job.learning_rate import TrainedUnder, best_of
from nas.job.request import Request
from nas.planning.task_ranges import prefix_tokens
from nas.stages.activations import TextActivations
from nas.stages.child import hardware_of
from nas.stages.context import Context
from nas.stages.devices import device_of
from nas.stages.library import Building, built
from nas.stages.prepare import Job, prepare
from nas.stages.training_task import TrainingTask, training_activations
from nas.stages.tune_study import CHECKS, USUAL, Rates, TriedRate, is_hopeless, next_rate
from nas.terminal.progress import bar

# Part of every study's key: raise it when the same settings would give other trials.
_TUNE_VERSION = 1
_SUBBLOCKS = 5
"""The most subblocks of a layer that a trial trains."""
_KEY = "first"
"""The key of first weights: their folder is of one process and one job."""


@dataclass(frozen=True)
class TuneRequest:
    """Try `rates` until there are so many `trials`, in these layers; None: in the first, the middle and the last."""

    trials: int
    layers: Sequence[int] | None = None
    rates: Rates = USUAL


@dataclass(frozen=True)
class Tuning:
    """The rates that were tried for a parent under one setting, in the order they were tried.

    `choices` are the subblocks that each trial trains, `trained` counts the trials that this call trained, and `asked`
    is the rate that the job itself says, which wins over the best; None where it says none.
    """

    parent: str
    under: TrainedUnder
    choices: tuple[Choice, ...]
    trials: tuple[TriedRate, ...]
    best: TriedRate
    trained: int
    asked: float | None

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the subblocks."""
        return tuple(sorted({choice.layer for choice in self.choices}))


def tune(request: Request, store: Store, console: Console, wanted: TuneRequest) -> Tuning:
    """Try learning rates for the parent of a job.

    Raises JobError where the job trains nothing, UsageError for layers that the parent has not, TuningError where
    no trial ended with a finite loss.
    """
    _check(request, wanted.trials)
    with Cluster(request.ray.address) as cluster:
        with bar(console, f"tune {request.name}", doing="looking at its home from every node") as shown:
            check_home(cluster, request.home)
            shown.say("loading the parent and the text")
            job = prepare(request, hardware_of(request, cluster))
            check_parent(cluster, job.parent)
        parts = to_tune(job, wanted.layers)
        study = study_key(job, parts, wanted.rates)
        context = Context.of(job, store, cluster, console)
        trained = _Trials(context, parts, study, wanted).run(_rows(store, job, study))
    rows = _rows(store, job, study)
    best = best_of(rows)
    if best is None:
        raise TuningError(
            f"none of the {len(rows)} learning rates ended with a finite loss; try more with --trials "
            f"{2 * len(rows)}, or look for NaN in what {request.parent} makes of the text"
        )
    under, trials = TrainedUnder.of(job.request.distill, job.tokens.distillation.size), tuple(map(_tried, rows))
    return Tuning(request.parent, under, parts, trials, _tried(best), trained, request.distill.learning_rate)


def _check(request: Request, trials: int) -> None:
    if trials < 1:
        raise UsageError(f"--trials {trials}: give at least one")
    if request.distill.tokens == 0 and not any(kind.tokens for kind in request.distill.kinds.values()):
        raise JobError("distill.tokens: 0 trains nothing, so there is no learning rate to tune; give some tokens")


def to_tune(job: Job, layers: Sequence[int] | None) -> tuple[Choice, ...]:
    """The subblocks that a trial trains: in each layer one of every kind whose rate the job's common one is, then
    further sizes, five at most. Raises JobError where there is none, UsageError for a layer that the parent has not."""
    count = job.parent.shape.layers
    for layer in layers or ():
        if not 0 <= layer < count:
            raise UsageError(f"--layers: {job.request.parent} has the layers 0 to {count - 1}, and no {layer}")
    wanted = {0, count // 2, count - 1} if layers is None else {*layers}
    trained = [part for part in job.to_build if part.layer in wanted and _is_trained(job, part)]
    # A fused run is trained as one FFN of its width, which is nothing new beside narrower ones.
    shortest = min((part.span for part in trained), default=1)
    found = [
        part
        for layer in sorted(wanted)
        for part in _several([each for each in trained if each.layer == layer and each.span == shortest])
    ]
    if not found:
        raise JobError(
            "space: no subblock of these layers is trained at distill.learning_rate; give options that have weights, "
            "such as attention: [kv50%] or ffn: [50%]"
        )
    return tuple(found)


def _is_trained(job: Job, part: Choice) -> bool:
    """Whether it is trained, at the job's common rate: no kind has a rate of 0 of its own."""
    training = job.at_rate(0.0).training(part)
    return is_trainable(part) and training.tokens > 0 and training.learning_rate == 0.0


def _several(parts: Sequence[Choice]) -> list[Choice]:
    first = {(part.role, part.subblocks[0][1].kind): part for part in reversed(parts)}.values()
    chosen = [*(part for part in parts if part in first), *(part for part in parts if part not in first)][:_SUBBLOCKS]
    return [part for part in parts if part in chosen]


def study_key(job: Job, parts: Sequence[Choice], rates: Rates = USUAL) -> str:
    """The key of all trials that differ in the rate alone."""
    at_one = job.at_rate(1.0)
    return digest("tune", _TUNE_VERSION, CHECKS, vars(rates), [at_one.build_key(part) for part in parts])


@dataclass(frozen=True)
class _TuneTask(TrainingTask):
    """A rate to try. The subblocks' first weights lie in the library, and their held-out losses are `losses`; `earlier`
    are the trials before it."""

    trainings: Mapping[Choice, Training]
    losses: Mapping[Choice, float]
    earlier: tuple[TriedRate, ...]
    rates: Rates


@dataclass(frozen=True)
class _Trials:
    """The trials of one study."""

    context: Context
    parts: tuple[Choice, ...]
    study: str
    wanted: TuneRequest

    def run(self, rows: Sequence[TuneTrialRow]) -> int:
        """Train those that are missing beside `rows`. Returns how many that were."""
        trained = 0
        if len(rows) < self.wanted.trials:
            job, store = self.context.job, self.context.store
            activations, losses = self._first_weights(self.wanted.trials - len(rows))
            while len(rows) < self.wanted.trials:
                found = self._try(activations, losses, tuple(map(_tried, rows)))
                store.add_tune_trial(self._row(found, len(rows)))
                self._tell(found, len(rows))
                trained += 1
                rows = _rows(store, job, self.study)  # Other processes may have tried some meanwhile.
        return trained

    @property
    def _root(self) -> Path:
        return self.context.folder.path / "first"

    def _first_weights(self, missing: int) -> tuple[tuple[TextActivations, TextActivations], Mapping[Choice, float]]:
        """The parent's activations, and the held-out losses of the subblocks' first weights, which are written."""
        job = self.context.job
        tokens = missing * max(job.training(part).tokens for part in self.parts)
        activations = training_activations(self.context, prefix_tokens([self.parts], tokens, job.parent.shape.layers))
        untrained = {part: Building(part, _KEY, Training(0, 0.0)) for part in self.parts}
        losses = {}
        for records in built(self.context, untrained, self._root, "first weights"):
            for record in records:
                fitted = record.loss_least_squares
                losses[Choice.parse(record.choice)] = record.loss_first_weights if fitted is None else fitted
        return activations, losses

    def _try(
        self,
        activations: tuple[TextActivations, TextActivations],
        losses: Mapping[Choice, float],
        earlier: tuple[TriedRate, ...],
    ) -> TriedRate:
        context, shared = self.context, self.context.shared
        rate = next_rate(earlier, self.wanted.rates)
        job = context.job.at_rate(rate)
        trainings = {part: job.training(part) for part in self.parts}
        most = max(training.tokens for training in trainings.values())
        gpus = min(1.0, job.request.gpus_per_task)
        with bar(context.console, f"train at {rate:g}", "tokens", most, STARTING) as shown:
            task = _TuneTask(
                shared["parent"], shared["calibration"], shared["distillation"], shared["score"], activations,
                job.request.distill.batch, self._root, device_of(job), trainings, losses, earlier, self.wanted.rates,
            )  # fmt: skip
            heard = shown.expect([most])
            ((_, found),) = context.cluster.run(_try, [task], gpus=gpus, whole_node=True, progress=heard)
        return found

    def _tell(self, found: TriedRate, number: int) -> None:
        self.context.console.print(
            f"trial {number + 1} of {self.wanted.trials}: learning rate {found.learning_rate:g}: {found.said}",
            soft_wrap=True, highlight=False,
        )  # fmt: skip

    def _row(self, found: TriedRate, number: int) -> TuneTrialRow:
        job = self.context.job
        return TuneTrialRow(
            key=digest(self.study, number),
            study=self.study,
            number=number,
            parent_digest=job.parent.digest,
            **vars(TrainedUnder.of(job.request.distill, job.tokens.distillation.size)),
            layers=sorted({part.layer for part in self.parts}),
            choices=[str(part) for part in self.parts],
            learning_rate=found.learning_rate,
            objective=found.objective,
            state=found.state,
            points=[list(point) for point in found.points],
            seconds=found.seconds,
        )


def _rows(store: Store, job: Job, study: str) -> list[TuneTrialRow]:
    return [row for row in store.tune_trials(job.parent.digest) if row.study == study]


def _tried(row: TuneTrialRow) -> TriedRate:
    points = tuple((tokens, objective) for tokens, objective in row.points)
    return TriedRate(row.learning_rate, row.objective, row.state, points, row.seconds)


def _try(task: _TuneTask, report: Report) -> TriedRate:
    started, points = time.monotonic(), list[tuple[float, float]]()
    parent, library = task.parent.on(task.device), Library(task.root)
    weights = {
        choice: {name: tensor.to(parent.device) for name, tensor in library.load(choice, _KEY).items()}
        for choice in task.trainings
    }
    rate = next(iter(task.trainings.values())).learning_rate

    def ended(state: TuneState, objective: float | None) -> TriedRate:
        return TriedRate(rate, objective, state, tuple(points), time.monotonic() - started)

    try:
        for event in train(parent, task.trainings, weights, task.texts(parent), CHECKS):
            if isinstance(event, Progress):
                report(event.done_tokens, event.total_tokens)
                continue
            points.append((event.done_tokens, _objective(event, task.losses)))
            if len(points) <= CHECKS and is_hopeless(task.earlier, points, task.rates):
                return ended("pruned", points[-1][1])
    except NotFiniteError:
        return ended("pruned", None)
    return ended("complete", points[-1][1])


def _objective(event: HeldOutLosses, before: Mapping[Choice, float]) -> float:
    return fmean(loss / max(before[choice], 1e-30) for choice, loss in event.losses.items())
