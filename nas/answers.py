"""Trials and fronts as a user of the Python API holds them: values that print well, in a terminal and in a notebook."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from cost_models.metrics import METRICS
from db import models
from nas.job import units
from nas.job.units import Limit
from nas.solve.budget_loop import of_all, verdicts
from nas.solve.caution import cautions, of_budget
from nas.solve.front import Point
from nas.solve.solve import Measured
from nas.view.plain import answered
from nas.view.table import comparison

if TYPE_CHECKING:
    from nas.stages.uniform import StoredModel


@dataclass(frozen=True)
class Trial:
    """One architecture of a search, as predicted and, where that was done, as built and measured.

    `row` holds every column that the database has of it.
    """

    row: models.TrialRow
    search_row: models.SearchRow = field(repr=False)

    @property
    def id(self) -> int | None:
        """Its number, or None where the database cannot be written and keeps no trial."""
        return self.row.id

    @property
    def architecture(self) -> str:
        """Its blocks, spelled."""
        return self.row.architecture

    @property
    def budget(self) -> dict[str, str]:
        """The limits it was solved for."""
        return {metric: units.said_limit(metric, text) for metric, text in self.row.budget.items()}

    @property
    def score(self) -> float:
        """The sum of its parts' scores: the predicted KL, in nats a token, where the search scores by KL."""
        return self.row.score

    @property
    def kl(self) -> float | None:
        """The built child's KL to the parent, in nats a token."""
        return self.row.kl

    @property
    def is_built(self) -> bool:
        """Whether there is a child to export."""
        return self.row.kl is not None

    @property
    def predicted(self) -> dict[str, float]:
        """Each metric of a budget in base units: seconds, tokens per second, joules, bytes, parameters."""
        return self._of_each("predicted_")

    @property
    def measured(self) -> dict[str, float]:
        """The same, of those that were measured."""
        return self._of_each("")

    def _of_each(self, prefix: str) -> dict[str, float]:
        found = {name: getattr(self.row, prefix + metric.column) for name, metric in METRICS.items()}
        return {metric: value for metric, value in found.items() if value is not None}

    @property
    def verdict(self) -> str:
        """Whether the budget was met: "met", "missed", "undecided" or "not measured"."""
        return of_all(verdicts(self.search_row, self.row).values())

    @property
    def cautions(self) -> tuple[str, ...]:
        """Sentences about a budget that limits nothing, or an architecture that lacks what it needs."""
        return cautions(self.search_row, self.row)

    def to_dict(self) -> dict[str, Any]:
        """The trial as `--json` prints it."""
        return answered(self.search_row, self.row)

    def __str__(self) -> str:
        rows = comparison(self.search_row, self.row)
        what, parent = (max(len(getattr(row, name)) for row in rows) for name in ("what", "parent"))
        return "\n".join(f"{row.what:<{what}}  {row.parent:<{parent}}  {row.child}" for row in rows)

    def _repr_html_(self) -> str:
        from nas.report.notebook import trial_html

        return trial_html(self.search_row, self.row)


@dataclass(frozen=True)
class Front(Sequence[Point]):
    """The best architectures along one cost, from the cheapest to the parent."""

    cost: str
    points: tuple[Point, ...]
    _known: Measured = field(repr=False)
    _budget: tuple[Limit, ...] = field(repr=False)
    _trials: tuple[models.TrialRow, ...] = field(repr=False)

    @overload
    def __getitem__(self, index: int) -> Point: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Point]: ...
    def __getitem__(self, index: int | slice) -> Point | Sequence[Point]:
        return self.points[index]

    def __len__(self) -> int:
        return len(self.points)

    @property
    def cautions(self) -> tuple[str, ...]:
        """Sentences about limits that limit nothing."""
        return of_budget(self._known.search, self._budget)

    def plot(self, path: str | Path) -> Path:
        """Draw it to a .svg or .png file. Raises `nas.errors.UsageError` for another ending."""
        from nas.report import write_front

        return write_front(self._known, self.cost, self.points, Path(path), self._budget, self._trials)

    def _repr_html_(self) -> str:
        from nas.report.trade_off import front_svg

        built = [trial for trial in self._trials if trial.kl is not None]
        return str(front_svg(self._known, self.cost, self.points, self._budget, built, built[-1] if built else None))


@dataclass(frozen=True)
class UniformPrecisions:
    """A built child that precisions were chosen for, and `models`: it and its parent in one precision throughout, from
    the largest file to the smallest."""

    trial: Trial
    models: "tuple[StoredModel, ...]"
