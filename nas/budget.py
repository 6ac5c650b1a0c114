"""The budget met by measurement, not only on paper.

Costs are measured one geometry at a time and add up to within a few per cent; a solver that packs a budget to the brim
also picks what was measured too cheap. So the chosen architecture is timed as a whole, before any healing. Where it
misses, the limit it misses is tightened by as much and the problem solved again; where it leaves some of all of them,
they are loosened by as much, and the best that is within the budget is taken.
"""

from collections.abc import Sequence
from dataclasses import replace

from db import models
from nas.solve import METRICS
from nas.units import Limit

TOLERANCE = 0.02
"""A measured limit may be passed by this share of itself, or as much of it left: about what timings repeat to."""

ATTEMPTS = 4

_TIMED = {"latency", "ttft", "decode", "throughput"}


def overshoot(trial: models.Trial, asked: Limit) -> float:
    """Measured over allowed, whichever way the limit points: above 1 where it is missed.

    Relative limits are held against the parent as timed beside the child. What arithmetic decides is never missed.
    """
    if asked.metric not in _TIMED:
        return 1.0
    column = METRICS[asked.metric]
    found = getattr(trial, column)
    parent = trial.details["parent"][column] if asked.relative else 1.0
    ratio = float(found / asked.absolute(parent))
    return 1 / ratio if asked.at_least else ratio


def worst_overshoot(trial: models.Trial, budget: Sequence[Limit]) -> float:
    """Of the limit it misses most, or meets by least."""
    return max(overshoot(trial, asked) for asked in budget)


def retargeted(budget: Sequence[Limit], trial: models.Trial, solved_for: Sequence[Limit]) -> tuple[Limit, ...]:
    """What to solve for next: of `solved_for`, what the trial was solved for, the limits it missed are tightened by how
    far, or, if it missed none, those it left some of loosened. The same where it met the budget."""
    over = [overshoot(trial, asked) for asked in budget]
    if max(over) > 1 + TOLERANCE:
        factors = [each if each > 1 + TOLERANCE else 1.0 for each in over]
    else:
        factors = [each if each < 1 - TOLERANCE else 1.0 for each in over]
    return tuple(_moved(current, factor) for current, factor in zip(solved_for, factors, strict=True))


def _moved(limit: Limit, factor: float) -> Limit:
    """Tightened by so much, or loosened by a factor below 1: a relative ceiling no farther than to the parent's own."""
    if factor == 1:
        return limit
    if limit.at_least:
        return replace(limit, value=_rounded(limit.value * factor))
    value = _rounded(limit.value / factor)
    return replace(limit, value=min(1.0, value) if limit.relative else value)


def _rounded(value: float) -> float:
    """To four digits: it is told, and no timing is nearer."""
    return float(f"{value:.4g}")
