"""The budget met by measurement, not only on paper.

Costs are measured one geometry at a time, and their sum is right to within a few per cent. A solver that uses a budget
up also prefers options that were measured too cheap. So the chosen architecture is timed as a whole, before any
healing. If it surely misses a limit, that limit is tightened by as much and the problem is solved again. If it surely
leaves a part of all limits unused, they are loosened by as much. The best architecture within the budget is taken.

A measurement has an error, so a limit is met, missed, or undecided. This file alone decides which.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cost_models.errors import QuantityError
from cost_models.metrics import METRICS, Metric
from db import models
from nas.errors import BudgetError
from nas.job.stored import parent_totals, request_of
from nas.job.units import Limit, parse_limit
from solvers.problem import LIMIT_TOLERANCE

TOLERANCE = 0.02
"""The tolerance of a measured limit, to either side, as a share of it: about the timing noise."""

SURE = 2.0
"""The true value is taken to lie within so many standard errors of the measured one."""

ATTEMPTS = 4

Verdict = Literal["met", "missed", "undecided", "not measured"]

_COLUMNS = {name for metric in METRICS.values() if metric.is_measured for name in metric.measured}


@dataclass(frozen=True)
class Reached:
    """The measured value over the limit, whichever way the limit points: above 1 is past it. `error` is the standard
    error relative to it, None where nobody knows."""

    over: float
    error: float | None

    @property
    def verdict(self) -> Verdict:
        """Undecided where the error leaves both possible, `SURE` standard errors to either side."""
        if self.error is None:
            return "undecided"
        if self.over * (1 + SURE * self.error) <= 1 + TOLERANCE:
            return "met"
        return "missed" if self.over * (1 - SURE * self.error) > 1 + TOLERANCE else "undecided"

    @property
    def leaves_some(self) -> bool:
        """Surely more than the tolerance."""
        return self.error is not None and self.over * (1 + SURE * self.error) < 1 - TOLERANCE


@dataclass(frozen=True)
class Times:
    """A child timed beside its parent: what was measured of both, by the columns of a trial, and the CPU contention
    meanwhile. None where nobody measured it."""

    child: Mapping[str, float | None]
    parent: Mapping[str, float | None]
    contention: float | None


def times_of(trial: models.TrialRow) -> Times:
    return Times({name: getattr(trial, name) for name in _COLUMNS}, trial.of_parent, trial.contention)


def reached(times: Times, asked: Limit) -> Reached | None:
    """None where nothing was measured of it. Relative limits are held against the parent as timed beside the child;
    what arithmetic decides is never missed: the solver has kept it."""
    if not asked.row.is_measured:
        return Reached(1.0, 0.0)
    found = _share(times, asked.row) if asked.relative else times.child[asked.row.column]
    if found is None:
        return None
    ratio = float(found / asked.value)
    return Reached(1 / ratio if asked.at_least else ratio, times.child[asked.row.spread])


def _share(times: Times, metric: Metric) -> float | None:
    """The child's share of the parent's value."""
    ratio = times.child[metric.ratio] if metric.ratio else None
    if ratio is not None:
        return float(1 / ratio if metric.at_least else ratio)
    found, parent = times.child[metric.column], times.parent.get(metric.column)
    return None if found is None or not parent else float(found / parent)


def verdict(times: Times, asked: Limit, contention_allowed: float) -> Verdict:
    """Whether what was timed meets a limit. Under more CPU contention than is allowed nothing is decided, however well
    its rounds agree."""
    found = reached(times, asked)
    if found is None:
        return "not measured"
    if asked.row.is_measured and times.contention is not None and times.contention > contention_allowed:
        return "undecided"
    return found.verdict


def of_all(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a budget from those on its limits: a budget is met if each of them is."""
    found = set(verdicts)
    order: tuple[Verdict, ...] = ("missed", "not measured", "undecided")
    return next((one for one in order if one in found), "met")


def verdicts(search: models.SearchRow, trial: models.TrialRow) -> dict[str, Verdict]:
    """The verdict on each limit of the trial's budget, by its metric."""
    allowed = request_of(search).measure.contention_allowed
    return {
        asked.metric: verdict(times_of(trial), asked, allowed)
        if asked.row.is_measured
        else _by_arithmetic(search, trial, asked)
        for asked in limits_of(trial)
    }


def _by_arithmetic(search: models.SearchRow, trial: models.TrialRow, asked: Limit) -> Verdict:
    column = asked.row.column
    whole = parent_totals(search)[column]
    counted = getattr(trial, column)
    counted = getattr(trial, asked.row.predicted) if counted is None else counted
    return "met" if counted <= asked.absolute(whole) * (1 + LIMIT_TOLERANCE) else "missed"


def limits_of(trial: models.TrialRow) -> tuple[Limit, ...]:
    """Those of its budget that can be read: an older version wrote others."""
    found = []
    for metric, text in trial.budget.items():
        try:
            found.append(parse_limit(metric, text))
        except (BudgetError, QuantityError):
            continue
    return tuple(found)


def uncertainty(trial: models.TrialRow) -> str:
    """How well the times behind a proof are known, in words, since the proof depends on its limits. Empty
    where none is of a time, or they are exact."""
    measured = [asked.row.summed for asked in limits_of(trial) if asked.row.is_measured]
    if not measured:
        return ""
    error = getattr(trial, measured[0].predicted_error)
    if error is None:
        return "for times of unknown error"
    share = error / (getattr(trial, measured[0].predicted) or 1.0)
    return f"for times known to ± {share:.1%}" if share else ""


def overshoot(trial: models.TrialRow, asked: Limit) -> float:
    """Measured over allowed, whichever way the limit points: above 1 where it is missed. The trial was timed."""
    found = reached(times_of(trial), asked)
    assert found is not None, f"trial {trial.id} was not timed"
    return found.over


def worst_overshoot(trial: models.TrialRow, budget: Sequence[Limit]) -> float:
    """The overshoot of the limit that it misses most, or meets by least."""
    return max(overshoot(trial, asked) for asked in budget)


def retargeted(
    budget: Sequence[Limit], trial: models.TrialRow, solved_for: Sequence[Limit], contention_allowed: float = 1.0
) -> tuple[Limit, ...]:
    """The limits to solve for next. `solved_for` are those that the trial was solved for: the limits that it certainly
    missed are tightened by the same factor, or, if it certainly met all, those that it did not use up are loosened.
    They stay the same if it used the budget up, and while the verdict is undecided: noise decides nothing."""
    times = times_of(trial)
    found = [verdict(times, asked, contention_allowed) for asked in budget]
    over = [reached(times, asked) or Reached(1.0, None) for asked in budget]
    if "missed" in found:
        factors = [one.over if said == "missed" else 1.0 for one, said in zip(over, found, strict=True)]
    elif of_all(found) == "met":
        factors = [one.over if one.leaves_some else 1.0 for one in over]
    else:
        return tuple(solved_for)
    return tuple(_moved(current, factor) for current, factor in zip(solved_for, factors, strict=True))


def _moved(limit: Limit, factor: float) -> Limit:
    """The limit tightened by a factor; one below 1 loosens it, a relative ceiling at most to the parent's own value."""
    if factor == 1:
        return limit
    if limit.at_least:
        return replace(limit, value=_rounded(limit.value * factor))
    value = _rounded(limit.value / factor)
    return replace(limit, value=min(1.0, value) if limit.relative else value)


def _rounded(value: float) -> float:
    """Four digits: messages show them, and no timing is more exact."""
    return float(f"{value:.4g}")
