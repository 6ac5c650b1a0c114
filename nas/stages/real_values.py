"""The real values of a search's architectures: from the store, or measured on workers if they are not there yet.

The first measurement loads the parent and starts Ray. `_whole`, `_influence` and `_removed` run on workers: each is
given one task and returns one result.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from blocklib.block import Architecture, Choice
from blocklib.distil import Progress
from blocklib.library import Library
from blocklib.parent import Parent
from db import models
from db.store import Store
from nas.cluster.shared_files import check_home, check_parent
from nas.cluster.tasks import STARTING, Cluster, Report, Result, Task
from nas.errors import StaleSearchError
from nas.files.home import home_of
from nas.job.config import restored
from nas.job.request import Request
from nas.job.stored import StoredRemoval, removal_of, request_of
from nas.scoring.architectures import score_whole
from nas.scoring.block_influence import block_influence
from nas.scoring.layer_removal import loss_without
from nas.stages import child
from nas.stages.context import Context
from nas.stages.devices import device_of, tensor
from nas.stages.library import choice_weights
from nas.stages.prepare import Job, prepare
from nas.terminal.progress import Bar, Heard, bar
from nas.text.token_files import Ids
from solvers.baselines.sleb import removal_rounds


class Reality:
    """One search's. A context manager; `measured` counts the values that were computed."""

    def __init__(self, store: Store, search: models.SearchRow, console: Console):
        self._store, self._search, self._console = store, search, console
        self._cluster = Cluster(request_of(search).ray_address)
        known = store.trials(search.id, where="kl_whole is not None")
        self._kls = {trial.architecture: trial.kl_whole for trial in known if trial.kl_whole is not None}
        self._removal = removal_of(search)
        self._counting: Bar | None = None
        self.measured = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.__exit__(kind, error, trace)

    @contextmanager
    def counting(self, name: str, models: int | None = None) -> Iterator[None]:
        """Show one bar for all whole models that run inside the block; the argument is their largest number, if
        known."""
        with bar(self._console, name, "models", models, "choosing") as self._counting:
            try:
                yield
            finally:
                self._counting = None

    @contextmanager
    def _bar(self, name: str) -> Iterator[Bar]:
        """The current bar, or one for this call alone. Loads everything that tasks need."""
        if self._counting is None:
            with bar(self._console, name, "models") as shown:
                yield self._loaded(shown)
        else:
            yield self._loaded(self._counting)
            self._counting.say("choosing")

    def _loaded(self, shown: Bar) -> Bar:
        shown.say("loading the parent and the text")
        _ = self.job
        shown.say(STARTING)
        return shown

    @cached_property
    def job(self) -> Job:
        """The job as the search was run. Raises StaleSearchError if it cannot be restored."""
        search = self._search
        job = replace(prepare(self._request, search.hardware), dependency=search.dependency)
        if job.id != search.id:
            raise StaleSearchError(
                f"search {search.name} ({search.id}): its parent, its text or the libraries have changed; "
                "run `nas search` on its job"
            )
        return job

    @property
    def _request(self) -> Request:
        there = {"home": str(home_of(self._store, self._search))}
        return restored(self._search.request | there, f"search {self._search.name} ({self._search.id})")

    @cached_property
    def _context(self) -> Context:
        check_home(self._cluster, self.job.home)
        check_parent(self._cluster, self.job.parent)
        return Context.of(self.job, self._store, self._cluster, self._console)

    def kl(self, architectures: Sequence[str]) -> Iterator[tuple[str, float]]:
        """The KL of each to the parent on the score text, assembled and not trained. Yields them as soon as a worker's
        share is known. The caller keeps them as trials."""
        asked = set(architectures)
        yield from [(architecture, self._kls[architecture]) for architecture in sorted(asked & self._kls.keys())]
        if missing := sorted(asked - self._kls.keys()):
            for architecture, kl in self._score(missing):
                self._kls[architecture] = kl
                self.measured += 1
                yield architecture, kl

    def _score(self, architectures: Sequence[str]) -> Iterator[tuple[str, float]]:
        with self._bar(f"real KL of {len(architectures)}") as shown:
            job, asked = self.job, self.job.request.ray
            places = self._cluster.places(asked.cpus_per_task, job.request.gpus_per_task)
            # Sorted, so that architectures with the same first choices are neighbours and share that work.
            size = -(-len(architectures) // places)
            parsed = [Architecture.parse(text) for text in architectures]
            groups = [parsed[start : start + size] for start in range(0, len(parsed), size)]
            parent, text = self._context.shared["parent"], self._context.shared["score"]
            tasks = [
                _WholeTask(parent, text, job.library.root, group, self._keys(group), device_of(job)) for group in groups
            ]
            heard = shown.expect([len(group) for group in groups])
            for _, some in self._cluster.run(
                _whole, tasks, cpus=asked.cpus_per_task, gpus=job.request.gpus_per_task, progress=heard
            ):
                yield from some.items()

    def _keys(self, architectures: Sequence[Architecture]) -> dict[Choice, str]:
        """The parts that they take from the library."""
        return self.job.built_keys({choice for each in architectures for choice in each.choices()})

    def influence(self) -> Sequence[float]:
        """The block influence of each of the parent's layers: see `nas/scoring/block_influence.py`."""
        if self._removal.influence is None:
            with self._bar("block influence") as shown:
                task = _InfluenceTask(*self._inputs(), device_of(self.job))
                influence = self._alone(_influence, task, shown.expect([1]))
            self._keep(replace(self._removal, influence=influence))
        assert self._removal.influence is not None
        return self._removal.influence

    def remove(self, rounds: int) -> None:
        """Measure SLEB's rounds up to this number; a known round is not measured again."""
        known, layers = self._removal.rounds, Architecture.parse(self._search.parent_architecture).layers
        models = sum(layers - 2 - before for before in range(len(known), rounds))
        if models > 0:
            with self._bar("layers removed") as shown:
                task = _RemovalTask(*self._inputs(), known, rounds, device_of(self.job))
                found = self._alone(_removed, task, shown.expect([models]))
            self._keep(replace(self._removal, rounds=found))

    def losses(self, removed: Sequence[int], candidates: Sequence[int]) -> list[float]:
        """The losses in the form of `solvers.baselines.sleb.LossWithout`; the first and the last layer stay."""
        self.remove(len(removed) + 1)
        losses = self._removal.rounds[len(removed)]
        return [losses[layer] for layer in candidates]

    def _inputs(self) -> tuple[Any, Any]:
        """Handles to the parent and to the calibration text."""
        shared = self._context.shared
        return shared["parent"], shared["calibration"]

    def _alone(self, work: Callable[[Task, Report], Result], task: Task, heard: Heard) -> Result:
        """The result of `work` with a whole node to itself."""
        gpus = 1 if self.job.request.gpus_per_task else 0
        ((_, found),) = self._cluster.run(work, [task], gpus=gpus, whole_node=True, progress=heard)
        return found

    def _keep(self, removal: StoredRemoval) -> None:
        self._removal = removal
        self._store.set_removal(self._search.id, removal.plain())
        self.measured += 1

    def made(self, trial: models.TrialRow) -> models.TrialRow:
        """The trial with its child built, healed and evaluated."""
        trial = self._store.trial_with_twins(trial.id)
        self.measured += trial.kl is None
        return child.made(self._context, trial)

    def timed(self, trial: models.TrialRow) -> models.TrialRow:
        """The trial timed beside its parent, on the search's machine: see `check_machine`."""
        trial = self._store.trial_with_twins(trial.id)
        if child.is_timed(trial):
            return trial
        self.measured += 1
        return child.timed(self._context, trial)

    def check_machine(self) -> None:
        """Raises StaleSearchError where times would be taken on another machine than the search's."""
        search, here = self._search, child.hardware_of(self._request, self._cluster)
        if here != search.hardware:
            raise StaleSearchError(
                f"search {search.name} ({search.id}) was timed on another machine, or with another torch, "
                f"{search.hardware}: here it is {here}; run `nas search` on its job here"
            )


@dataclass(frozen=True)
class _WholeTask:
    """`keys` are those of the parts that the architectures take from the library, whose folder is `root`."""

    parent: Parent
    ids: Ids
    root: Path
    architectures: Sequence[Architecture]
    keys: Mapping[Choice, str]
    device: str


def _whole(task: _WholeTask, report: Report) -> dict[str, float]:
    """The KL of each architecture."""
    parent, library = task.parent.on(task.device), Library(task.root)
    ids_BT = tensor(task.ids, task.device)
    for event in score_whole(
        parent, task.architectures, lambda choice: choice_weights(parent, library, choice, task.keys), ids_BT
    ):
        if isinstance(event, Progress):
            report(event.done_tokens, event.total_tokens)
        else:
            return {str(architecture): fidelity.kl for architecture, fidelity in event.items()}
    raise AssertionError("scoring ended without scores")


@dataclass(frozen=True)
class _InfluenceTask:
    parent: Parent
    calibration: Ids
    device: str


def _influence(task: _InfluenceTask, report: Report) -> tuple[float, ...]:
    parent = task.parent.on(task.device)
    report(doing="one pass of the parent")
    return tuple(block_influence(parent, tensor(task.calibration, task.device)))


@dataclass(frozen=True)
class _RemovalTask:
    """`wanted` rounds of SLEB, including the `known` ones."""

    parent: Parent
    calibration: Ids
    known: Sequence[Mapping[int, float]]
    wanted: int
    device: str


def _removed(task: _RemovalTask, report: Report) -> tuple[Mapping[int, float], ...]:
    """The losses of each round by layer."""
    parent, ids_BT = task.parent.on(task.device), tensor(task.calibration, task.device)
    known, wanted = task.known, task.wanted
    inner = range(1, parent.shape.layers - 1)
    models = sum(len(inner) - before for before in range(len(known), wanted))
    done = 0

    def losses(removed: Sequence[int], candidates: Sequence[int]) -> list[float]:
        nonlocal done
        if len(removed) < len(known):
            return [known[len(removed)][layer] for layer in candidates]

        def heard(tokens: int, total: int) -> None:
            report(done + len(candidates) * tokens / total, models, f"round {len(removed) + 1} of {wanted}")

        found = loss_without(parent, ids_BT, removed, candidates, heard=heard)
        done += len(candidates)
        return found

    rounds = islice(removal_rounds(inner, losses), wanted)
    return tuple(dict(each.losses) for each in rounds)
