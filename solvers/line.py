"""Slots in a row, options as steps along it: the least weight of any tiling is a shortest path.

This is what the limits alone make hard: without them the best tiling takes one pass. So the file gives exact bounds for
any one sum, in no time, to everything around the integer program. It does not know limits, nor which sum is the score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from solvers.problem import Infeasible, Option, Problem

Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """Options as steps from their first slot to the slot after their last. Weights are one number per option."""

    slots: int
    options: Sequence[Option]

    @cached_property
    def firsts(self) -> NDArray[np.intp]:
        return np.array([option.first for option in self.options], dtype=np.intp)

    @cached_property
    def ends(self) -> NDArray[np.intp]:
        return np.array([option.end for option in self.options], dtype=np.intp)

    @cached_property
    def _by_first(self) -> list[NDArray[np.intp]]:
        return _grouped(self.firsts, self.slots)

    @cached_property
    def _by_end(self) -> list[NDArray[np.intp]]:
        return _grouped(self.ends, self.slots)

    def up_to(self, weights: Weights) -> Weights:
        """Least weight of a tiling of the slots before each slot, and of all (slots + 1 numbers); inf where none is."""
        least = np.full(self.slots + 1, np.inf)
        least[0] = 0.0
        for end, steps in enumerate(self._by_end):
            if len(steps):
                least[end] = np.min(least[self.firsts[steps]] + weights[steps])
        return least

    def onward(self, weights: Weights) -> Weights:
        """Least weight of a tiling from each slot to the last (slots + 1 numbers); inf where there is none."""
        least = np.full(self.slots + 1, np.inf)
        least[self.slots] = 0.0
        for first in reversed(range(self.slots)):
            steps = self._by_first[first]
            if len(steps):
                least[first] = np.min(weights[steps] + least[self.ends[steps]])
        return least

    def through(self, weights: Weights) -> Weights:
        """For each option the least weight of any tiling it is part of; inf where it is part of none."""
        through: Weights = self.up_to(weights)[self.firsts] + weights + self.onward(weights)[self.ends]
        return through

    def least(self, weights: Weights) -> tuple[int, ...]:
        """The options, by index and in slot order, of a tiling of least weight; there must be one."""
        onward = self.onward(weights)
        assert np.isfinite(onward[0]), "the options do not tile the slots"
        chosen: list[int] = []
        slot = 0
        while slot < self.slots:
            steps = self._by_first[slot]
            step = int(steps[np.argmin(weights[steps] + onward[self.ends[steps]])])
            chosen.append(step)
            slot = int(self.ends[step])
        return tuple(chosen)


def _grouped(slot_of_option: NDArray[np.intp], slots: int) -> list[NDArray[np.intp]]:
    return [np.flatnonzero(slot_of_option == slot) for slot in range(slots + 1)]


def scores_of(problem: Problem) -> Weights:
    return np.array([option.score for option in problem.options], dtype=np.float64)


def costs_of(problem: Problem, cost: str) -> Weights:
    return np.array([option.costs[cost] for option in problem.options], dtype=np.float64)


def score_bound(problem: Problem) -> float:
    """The least score of any tiling, limits set aside: a proven bound for solvers that prove none of their own."""
    return float(Line(problem.slots, problem.options).up_to(scores_of(problem))[-1])


def check_tiling(problem: Problem) -> None:
    """Raises Infeasible, naming the slots, where no choice of options covers every slot once."""
    line = Line(problem.slots, problem.options)
    nothing = np.zeros(len(problem.options))
    reached = np.isfinite(line.up_to(nothing))
    if reached[-1]:
        return
    covered = {slot for option in problem.options for slot in range(option.first, option.end)}
    bare = [slot for slot in range(problem.slots) if slot not in covered]
    if bare:
        raise Infeasible(f"no option covers slots {', '.join(map(str, bare))}")
    left = int(np.flatnonzero(reached)[-1])
    right = int(np.flatnonzero(np.isfinite(line.onward(nothing)))[0])
    raise Infeasible(
        f"the options do not tile slots {min(left, right)}..{min(max(left, right), problem.slots - 1)}: from the first "
        f"slot on, no run of whole options gets past slot {left}; back from the last, none gets before slot {right}"
    )
