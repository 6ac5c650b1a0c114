"""Slots in a row, options as steps along it: the least weight of any tiling is a shortest path.

Only the limits make the problem hard: without them the best tiling takes one pass. So this file quickly gives exact
bounds on any single sum. Options over the same slots are one step of the path, with the weight of the lightest. This
file does not know limits, nor which sum is the score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from solvers.errors import Infeasible
from solvers.problem import Option, Problem

Weights = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Line:
    """Option i leads from slot `firsts[i]` to slot `ends[i]`, the one after its last. Weights are one per option."""

    slots: int
    firsts: Indices
    ends: Indices

    @staticmethod
    def of(slots: int, options: Sequence[Option]) -> "Line":
        firsts = np.array([option.first for option in options], dtype=np.intp)
        return Line(slots, firsts, np.array([option.end for option in options], dtype=np.intp))

    def only(self, kept: Indices) -> "Line":
        """The same slots with some of the options."""
        return Line(self.slots, self.firsts[kept], self.ends[kept])

    @cached_property
    def mirrored(self) -> "Line":
        """The same options seen from the last slot."""
        return Line(self.slots, self.slots - self.ends, self.slots - self.firsts)

    @cached_property
    def steps(self) -> "Steps":
        return Steps.of(self.firsts, self.ends)

    def up_to(self, weights: Weights) -> Weights:
        """Least weight of a tiling of the slots before each slot, and of all (slots + 1 numbers); inf where none is."""
        least = [0.0] + [np.inf] * self.slots
        steps = self.steps
        for first, end, weight in zip(steps.firsts, steps.ends, steps.least(weights), strict=True):
            reached = least[first] + weight
            if reached < least[end]:
                least[end] = reached
        return np.array(least)

    def onward(self, weights: Weights) -> Weights:
        """Least weight of a tiling from each slot to the last (slots + 1 numbers); inf where there is none."""
        least = [np.inf] * self.slots + [0.0]
        steps = self.steps
        backwards = zip(reversed(steps.firsts), reversed(steps.ends), reversed(steps.least(weights)), strict=True)
        for first, end, weight in backwards:
            reached = least[end] + weight
            if reached < least[first]:
                least[first] = reached
        return np.array(least)

    def through(self, weights: Weights) -> Weights:
        """For each option the least weight of any tiling it is part of; inf where it is part of none."""
        through: Weights = self.up_to(weights)[self.firsts] + weights + self.onward(weights)[self.ends]
        return through

    def least(self, weights: Weights) -> Indices:
        """The options, by index and in slot order, of a tiling of least weight; there must be one."""
        steps = self.steps
        least, last_step = [0.0] + [np.inf] * self.slots, [-1] * (self.slots + 1)
        for step, weight in enumerate(steps.least(weights)):
            reached = least[steps.firsts[step]] + weight
            if reached < least[steps.ends[step]]:
                least[steps.ends[step]], last_step[steps.ends[step]] = reached, step
        assert np.isfinite(least[-1]), "the options do not tile the slots"
        chosen: list[int] = []
        slot = self.slots
        while slot:
            options = steps.options(last_step[slot])
            chosen.append(int(options[np.argmin(weights[options])]))
            slot = steps.firsts[last_step[slot]]
        return np.array(chosen[::-1], dtype=np.intp)


@dataclass(frozen=True)
class Steps:
    """The options by the slots they cover: step k leads from slot `firsts[k]` to `ends[k]`, first to last.

    `order` are the options step by step, `starts` where each step's begin in it.
    """

    order: Indices
    starts: Indices
    firsts: list[int]
    ends: list[int]

    @staticmethod
    def of(firsts: Indices, ends: Indices) -> "Steps":
        order = np.lexsort((ends, firsts))
        ordered = np.stack([firsts[order], ends[order]])
        is_new = np.ones(len(order), dtype=np.bool_)
        is_new[1:] = np.any(ordered[:, 1:] != ordered[:, :-1], axis=0)
        starts = np.flatnonzero(is_new)
        return Steps(order, starts, ordered[0, starts].tolist(), ordered[1, starts].tolist())

    def least(self, weights: Weights) -> list[float]:
        """The least weight at each step."""
        if not len(self.starts):
            return []
        least: list[float] = np.minimum.reduceat(weights[self.order], self.starts).tolist()
        return least

    def options(self, step: int) -> Indices:
        """The options of one step, in no order but always the same."""
        end = self.starts[step + 1] if step + 1 < len(self.starts) else len(self.order)
        return self.order[self.starts[step] : end]

    @cached_property
    def of_option(self) -> Indices:
        """Each option's step."""
        counts = np.diff(np.append(self.starts, len(self.order)))
        found = np.empty(len(self.order), dtype=np.intp)
        found[self.order] = np.repeat(np.arange(len(self.starts)), counts)
        return found

    def exchanges(self, tiling: Indices) -> tuple[Indices, Indices]:
        """The options that could replace one of the tiling's options over the same slots, and the places of these in
        the tiling. Two arrays of one length, by ascending option.
        """
        place_of_step = np.full(len(self.starts), -1)
        place_of_step[self.of_option[tiling]] = np.arange(len(tiling))
        place_O = place_of_step[self.of_option]
        others = np.flatnonzero(place_O >= 0)
        others = others[tiling[place_O[others]] != others]
        return others, place_O[others]


def scores_of(problem: Problem) -> Weights:
    """One per option, in the caller's units."""
    return np.array([option.score for option in problem.options], dtype=np.float64)


def costs_of(problem: Problem, cost: str) -> Weights:
    """One per option, in the caller's units."""
    return np.array([option.costs[cost] for option in problem.options], dtype=np.float64)


def line_of(problem: Problem) -> Line:
    return Line.of(problem.slots, problem.options)


def score_bound(problem: Problem) -> float:
    """The least score of any tiling, limits set aside: a proven bound for solvers that prove none of their own."""
    return float(line_of(problem).up_to(scores_of(problem))[-1])


def check_tiling(problem: Problem) -> None:
    """Raises Infeasible, naming the slots, where no choice of options covers every slot once."""
    line = line_of(problem)
    nothing = np.zeros(len(problem.options))
    reached = np.isfinite(line.up_to(nothing))
    if reached[-1]:
        return
    begun = np.bincount(line.firsts, minlength=problem.slots + 1) - np.bincount(line.ends, minlength=problem.slots + 1)
    bare = np.flatnonzero(np.cumsum(begun)[:-1] == 0).tolist()
    if bare:
        more = f" and {len(bare) - 9} more" if len(bare) > 9 else ""
        raise Infeasible(f"no option covers slots {', '.join(map(str, bare[:9]))}{more}")
    left = int(np.flatnonzero(reached)[-1])
    right = int(np.flatnonzero(np.isfinite(line.onward(nothing)))[0])
    raise Infeasible(
        f"the options do not tile slots {min(left, right)}..{min(max(left, right), problem.slots - 1)}: from the first "
        f"slot on, no run of whole options gets past slot {left}; back from the last, none gets before slot {right}"
    )
