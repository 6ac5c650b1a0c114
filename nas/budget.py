"""The budget met by measurement, not only on paper.

Costs are measured one geometry at a time and add up to within a few per cent; a solver that packs a budget to the brim
also picks what was measured too cheap. So the chosen architecture is timed as a whole, before any healing, and where it
misses, the limit it misses is tightened by as much and the problem solved again.
"""

from collections.abc import Sequence
from dataclasses import replace

from db import models
from nas.solve import METRICS
from nas.units import Limit, format_quantity

TOLERANCE = 0.02
"""A measured limit may be passed by this share of itself: about what timings repeat to."""

ATTEMPTS = 4

DRIFT = 1.5
"""Times of one machine that differ by more than this are of a busy one: repeats differ by some per cent."""

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


def drifted(trial: models.Trial, budget: Sequence[Limit], parent_s: float) -> str:
    """What to tell where the parent, timed beside the child, takes much else than `parent_s`, what its parts added up
    to when they were timed; empty where it does not, or no time is limited."""
    now_s = float(trial.details["parent"]["latency_s"])
    if not any(asked.metric in _TIMED for asked in budget) or 1 / DRIFT <= now_s / parent_s <= DRIFT:
        return ""
    now, then = format_quantity("latency", now_s), format_quantity("latency", parent_s)
    return (
        f"the parent takes {now} now, and {then} by what its parts took: the machine was busy, then or now, and what "
        "options cost may be far off; to time them again when it is not, change measure.tolerance a little"
    )
