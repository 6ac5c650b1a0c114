"""The budget met by measurement, not only on paper.

Costs are measured one geometry at a time and add up to within a few per cent; a solver that packs a budget to the brim
also picks what was measured too cheap. So the chosen architecture is timed as a whole, before any healing, and where it
misses, the limit it misses is tightened by as much and the problem solved again.
"""

from collections.abc import Sequence
from dataclasses import replace

from db import models
from nas.solve import METRICS
from nas.units import Limit

TOLERANCE = 0.02
"""A measured limit may be passed by this share of itself: about what timings repeat to."""

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


def tightened(budget: Sequence[Limit], trial: models.Trial, solved_for: Sequence[Limit]) -> tuple[Limit, ...]:
    """What to solve for next: the limits the trial missed, tightened from what it was solved for by how far it missed
    them. Equal to `solved_for` where the trial is within the budget."""
    found = []
    for asked, current in zip(budget, solved_for, strict=True):
        miss = overshoot(trial, asked)
        if miss > 1 + TOLERANCE:
            current = replace(current, value=current.value * miss if asked.at_least else current.value / miss)
        found.append(current)
    return tuple(found)
