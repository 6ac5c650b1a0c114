"""Partial tilings from the first slot on, all that may still become better than the best known: labels.

Dynamic programming with bounds (Marsten and Morin, 1978). A label's weight, its sums and a shortest path through the
slots that are left bound what it can become, for any prices of the limits. Several price vectors bound it from several
sides, so that a label that has used too much of one limit and too little of another is soon seen to be lost. Where more
than `width` are left at a slot, those of least bound go on, and the least bound of those left behind is a bound on all
that was not looked at.

Legend of shape suffixes: L labels, O options, R rows, P price vectors.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.line import Indices, Weights
from solvers.program import Program


@dataclass(frozen=True, eq=False)
class Labelled:
    """`best` is the lightest tiling within the rows that was met, None where none was. `bound` holds for all others
    lighter than was asked; infinite where every label was followed to its end or seen to be lost."""

    best: Indices | None
    bound: float


@dataclass(frozen=True, eq=False)
class _Labels:
    """Labels at one slot. `option_L` is each one's last option, `slot_L` and `label_L` where it came from."""

    weight_L: Weights
    sums_LR: Weights
    option_L: Indices
    slot_L: Indices
    label_L: Indices

    def only(self, kept: NDArray[np.bool_] | Indices) -> "_Labels":
        return _Labels(*(values[kept] for values in vars(self).values()))

    @staticmethod
    def together(some: list["_Labels"]) -> "_Labels":
        return _Labels(*map(np.concatenate, zip(*(vars(one).values() for one in some), strict=True)))


def label(
    program: Program,
    values_OR: Weights,
    most_R: Weights,
    prices_PR: Weights,
    below: float,
    rounding: float,
    width: int,
    deadline: float = math.inf,
) -> Labelled:
    """The lightest tiling within the rows, if it is lighter than `below`, by `width` labels at a slot. At the deadline
    (`time.monotonic`) it stops, with nothing found and nothing proven.

    `values_OR` and `most_R` are the program's rows in a scale where rounding errors of sums are below `rounding`, as
    they are of weights. The first price vector should be the best.
    """
    line = program.line
    onward_SP = np.stack([line.onward(program.weights + values_OR @ prices_R) for prices_R in prices_PR], axis=1)
    least_SR = np.stack([line.onward(values_O) for values_O in values_OR.T], axis=1) if len(most_R) else None
    paid_P = prices_PR @ most_R
    nothing = np.zeros(1, dtype=np.intp)
    waiting: list[list[_Labels]] = [[] for _ in range(line.slots + 1)]
    waiting[0] = [_Labels(np.zeros(1), np.zeros((1, len(most_R))), nothing, nothing, nothing)]
    left_behind = np.inf
    followed: dict[int, _Labels] = {}
    for slot in range(line.slots + 1):
        if not waiting[slot]:
            continue
        if time.monotonic() > deadline:
            return Labelled(None, -math.inf)
        here = _Labels.together(waiting[slot])
        waiting[slot] = []
        if least_SR is not None:
            here = here.only(np.all(here.sums_LR + least_SR[slot] <= most_R + rounding, axis=1))
        # The best prices tell most labels; only what they leave is held against the others.
        bound_L = here.weight_L + here.sums_LR @ prices_PR[0] + (onward_SP[slot, 0] - paid_P[0])
        here = here.only(bound_L < below + rounding)
        bound_L = (here.sums_LR @ prices_PR.T + here.weight_L[:, None] + (onward_SP[slot] - paid_P)).max(
            1, initial=-np.inf
        )
        is_open = bound_L < below + rounding
        here, bound_L = here.only(is_open), bound_L[is_open]
        if len(bound_L) > width:
            order = np.argpartition(bound_L, width)
            left_behind = min(left_behind, float(bound_L[order[width]]) - rounding)
            here = here.only(order[:width])
        followed[slot] = here
        if slot < line.slots and len(here.weight_L):
            _extend(program, values_OR, slot, here, waiting)
    return Labelled(_lightest(program, followed), left_behind)


def _extend(program: Program, values_OR: Weights, slot: int, here: _Labels, waiting: list[list[_Labels]]) -> None:
    """Every label with every option that begins at its slot, put where the option ends."""
    steps = program.line.steps
    for step in np.flatnonzero(np.array(steps.firsts) == slot).tolist():
        options = steps.options(step)
        count, labels = len(options), len(here.weight_L)
        waiting[steps.ends[step]].append(
            _Labels(
                (here.weight_L[:, None] + program.weights[options]).ravel(),
                (here.sums_LR[:, None, :] + values_OR[options]).reshape(labels * count, -1),
                np.tile(options, labels),
                np.full(labels * count, slot),
                np.repeat(np.arange(labels), count),
            )
        )


def _lightest(program: Program, followed: dict[int, _Labels]) -> Indices | None:
    """The lightest tiling that reached the last slot and is within the rows as they are, not only to rounding."""
    last = program.line.slots
    if last not in followed:
        return None
    for end in np.argsort(followed[last].weight_L, kind="stable").tolist():
        slot, place, chosen = last, end, []
        while slot:
            here = followed[slot]
            chosen.append(int(here.option_L[place]))
            slot, place = int(here.slot_L[place]), int(here.label_L[place])
        tiling = np.array(chosen[::-1], dtype=np.intp)
        if program.holds(tiling):
            return tiling
    return None
