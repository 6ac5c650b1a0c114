"""What is really so of a search's architectures: found in the store, measured on workers where it is not there yet.

The parent is loaded, and Ray started, when something is first to be measured. `_whole` and `_removed` run on workers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from blocklib.block import Architecture
from blocklib.distil import Progress
from blocklib.library import Library
from blocklib.packed import PackedParent, unpack
from db import models
from db.store import Store
from nas import realise
from nas.cluster import Cluster, Report
from nas.config import restored
from nas.influence import block_influence
from nas.job import Job, prepare
from nas.progress import bar
from nas.removal import loss_without
from nas.request import Request
from nas.stages import Ids, Shared, choice_weights, device_of, tensor
from nas.whole import score_whole
from solvers.sleb import removal_rounds


class Changed(ValueError):
    """A search whose parent, text, libraries or machine are no longer what it was measured with."""


@dataclass(frozen=True)
class Removal:
    """The parent without whole layers: each layer's block influence, and SLEB's rounds: the loss without each layer
    left, once those of least loss of the rounds before are gone. The first and the last layer stay."""

    influence: tuple[float, ...]
    rounds: tuple[dict[int, float], ...]

    def losses(self, removed: Sequence[int], candidates: Sequence[int]) -> list[float]:
        """As `solvers.sleb.LossWithout` wants them."""
        return [self.rounds[len(removed)][layer] for layer in candidates]


class Reality:
    """One search's. A context manager; `measured` counts what was really computed."""

    def __init__(self, store: Store, search: models.Search, console: Console):
        self._store, self._search, self._console = store, search, console
        self._cluster = Cluster(search.request["ray"]["address"])
        known = store.trials(search.id, where="kl_whole is not None")
        self._kls = {trial.architecture: trial.kl_whole for trial in known if trial.kl_whole is not None}
        self._removal = search.removal
        self.measured = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.__exit__(kind, error, trace)

    @cached_property
    def job(self) -> Job:
        """As the search was run. Raises Changed where that cannot be had any more."""
        search = self._search
        job = replace(prepare(self._request, search.hardware), dependency=search.dependency)
        if job.id != search.id:
            raise Changed(
                f"search {search.name} ({search.id}): its parent, its text or the libraries changed since; "
                "run `nas search` on its job"
            )
        return job

    @property
    def _request(self) -> Request:
        return restored(self._search.request, f"search {self._search.name} ({self._search.id})")

    @cached_property
    def _shared(self) -> Shared:
        return Shared(self.job, self._cluster)

    def kl(self, architectures: Sequence[str]) -> Iterator[tuple[str, float]]:
        """Of each once, assembled and not trained, to the parent, on the score text: as soon as a worker's share of
        them is known. Kept by who adds trials of them."""
        asked = set(architectures)
        yield from [(architecture, self._kls[architecture]) for architecture in sorted(asked & self._kls.keys())]
        if missing := sorted(asked - self._kls.keys()):
            for architecture, kl in self._score(missing):
                self._kls[architecture] = kl
                self.measured += 1
                yield architecture, kl

    def _score(self, architectures: Sequence[str]) -> Iterator[tuple[str, float]]:
        job, asked = self.job, self.job.request.ray
        places = self._cluster.places(asked.cpus_per_task, job.request.gpus_per_task)
        # Sorted, those that begin alike are neighbours, and share what they begin with.
        size = -(-len(architectures) // places)
        groups = [architectures[start : start + size] for start in range(0, len(architectures), size)]
        parent, text = self._shared["parent"], self._shared["score"]
        tasks = [(parent, text, str(job.library.root), group, self._keys(group), device_of(job)) for group in groups]
        with bar(self._console, f"real KL of {len(architectures)}") as shown:
            for index in range(len(groups)):
                shown.expect(index, job.tokens.score.size)
            for _, some in self._cluster.run(
                _whole, tasks, cpus=asked.cpus_per_task, gpus=job.request.gpus_per_task, progress=shown
            ):
                yield from some.items()

    def _keys(self, architectures: Sequence[str]) -> dict[str, str]:
        """What they take from the library."""
        choices = {choice for text in architectures for choice in Architecture.parse(text).choices()}
        parts = {part for choice in choices for part in self.job.library_parts(choice)}
        return {str(part): self.job.build_key(part) for part in parts}

    def removal(self) -> Removal:
        """Measured once for a search, whatever the budget."""
        if self._removal is None:
            task = (self._shared["parent"], self._shared["calibration"], device_of(self.job))
            gpus = 1 if self.job.request.gpus_per_task else 0
            with bar(self._console, "layers removed") as shown:
                ((_, found),) = self._cluster.run(_removed, [task], gpus=gpus, whole_node=True, progress=shown)
            self._store.set_removal(self._search.id, found)
            self._removal = found
            self.measured += 1
        rounds = [{int(layer): loss for layer, loss in losses.items()} for losses in self._removal["rounds"]]
        return Removal(tuple(self._removal["influence"]), tuple(rounds))

    def made(self, trial: models.Trial) -> models.Trial:
        """The trial with its child built, healed and evaluated."""
        trial = self._store.trial_with_twins(trial.id)
        self.measured += trial.kl is None
        return realise.made(self.job, self._store, self._cluster, self._shared, trial, self._console)

    def timed(self, trial: models.Trial) -> models.Trial:
        """The trial timed beside its parent, on the search's machine: see `check_machine`."""
        trial = self._store.trial_with_twins(trial.id)
        if trial.latency_ratio is not None:
            return trial
        self.measured += 1
        return realise.timed(self.job, self._store, self._cluster, self._shared, trial, self._console)

    def check_machine(self) -> None:
        """Raises Changed where times would be taken on another machine than the search's."""
        search, here = self._search, realise.hardware_of(self._request, self._cluster)
        if here != search.hardware:
            raise Changed(
                f"search {search.name} ({search.id}) was timed on another machine, or with another torch, "
                f"{search.hardware}: here it is {here}; run `nas search` on its job here"
            )


def _whole(
    packed: PackedParent,
    ids: Ids,
    root: str,
    architectures: Sequence[str],
    keys: dict[str, str],
    device: str,
    report: Report,
) -> dict[str, float]:
    parent, library = unpack(packed, device), Library(Path(root))
    asked = [Architecture.parse(text) for text in architectures]
    for event in score_whole(parent, asked, lambda c: choice_weights(parent, library, c, keys), tensor(ids, device)):
        if isinstance(event, Progress):
            report(event.done_tokens, event.total_tokens)
        else:
            return {str(architecture): fidelity.kl for architecture, fidelity in event.items()}
    raise AssertionError("scoring ended without scores")


def _removed(packed: PackedParent, calibration: Ids, device: str, report: Report) -> dict[str, Any]:
    parent, ids_BT = unpack(packed, device), tensor(calibration, device)
    inner = range(1, parent.shape.layers - 1)
    rounds: list[dict[str, float]] = []
    for each in removal_rounds(inner, partial(loss_without, parent, ids_BT)):
        rounds.append({str(layer): loss for layer, loss in each.losses.items()})
        report(len(rounds), len(inner))
    return {"influence": block_influence(parent, ids_BT), "rounds": rounds}
