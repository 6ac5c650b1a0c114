"""Baseline: the same choice in every layer, as in a smaller model of the family.

One name per slot of a layer (one attention, one FFN), of options that cover a single slot and stand in every layer. All
combinations are tried; it does not know, or use, that layers differ.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from solvers.errors import Infeasible
from solvers.exact.shortest_path import check_tiling, score_bound
from solvers.problem import Option, Problem, Solution, infeasible_choice
from solvers.refine.joint import joined, paired, parted


def uniform(problem: Problem, *, slots_per_layer: int = 2, layers: int | None = None) -> Solution:
    """The uniform solution of least score. Behind the slots of `layers` layers there may be more, which are filled
    in all ways; None: all slots are layers.

    Raises Infeasible where no uniform choice meets the limits, or there is none, and ValueError where the slots are not
    whole layers.
    """
    started = time.monotonic()
    if slots_per_layer < 1 or problem.slots % slots_per_layer:
        raise ValueError(f"{problem.slots} slots are not layers of {slots_per_layer} slots")
    check_tiling(problem)
    end = problem.slots if layers is None else layers * slots_per_layer
    by_place = [_in_every_layer(problem, place, slots_per_layer, end) for place in range(slots_per_layer)]
    for place, found in enumerate(by_place):
        if not found:
            raise Infeasible(f"uniform: no single-slot option stands at slot {place} of every layer")
    behind = _behind(problem, end)
    if not behind:
        raise Infeasible(f"uniform: nothing fills the slots from {end} on")
    pairs = paired(problem)
    # Options that were scored together count with their joint score.
    inside = [_Part.of(problem, parted(joined(_in_order(picked), pairs), problem)) for picked in product(*by_place)]
    wholes = [(one, rest) for one in inside for rest in behind]
    within = [parts for parts in wholes if _passed(problem, *parts) == 0]
    if not within:
        nearest = min(wholes, key=lambda parts: _passed(problem, *parts))
        choice = nearest[0].options + nearest[1].options
        raise infeasible_choice(problem, choice, "no uniform choice meets the limits; in the nearest one")
    one, rest = min(within, key=lambda parts: parts[0].score + parts[1].score)
    bound = score_bound(problem)
    return Solution.of(problem, one.options + rest.options, bound, time.monotonic() - started, "uniform")


@dataclass(frozen=True)
class _Part:
    """Some of a solution's options, and their sums."""

    options: tuple[Option, ...]
    score: float
    costs: Mapping[str, float]

    @staticmethod
    def of(problem: Problem, options: tuple[Option, ...]) -> "_Part":
        costs = {limit.cost: math.fsum(option.costs[limit.cost] for option in options) for limit in problem.limits}
        return _Part(options, math.fsum(option.score for option in options), costs)


def _behind(problem: Problem, end: int) -> list[_Part]:
    """The ways to fill the slots from `end` on."""
    ways: dict[int, list[tuple[Option, ...]]] = {problem.slots: [()]}
    for slot in reversed(range(end, problem.slots)):
        here = [one for one in problem.options if one.first == slot]
        ways[slot] = [(one, *rest) for one in here for rest in ways[one.end]]
    return [_Part.of(problem, options) for options in ways[end]]


def _in_order(picked: Sequence[Sequence[Option]]) -> list[Option]:
    return sorted((option for options in picked for option in options), key=lambda option: option.first)


def _in_every_layer(problem: Problem, place: int, slots_per_layer: int, end: int) -> list[tuple[Option, ...]]:
    """For each name that stands at this slot of every layer before slot `end`, its options, one per layer."""
    by_name: dict[str, list[Option]] = {}
    for option in problem.options:
        if option.span == 1 and option.first < end and option.first % slots_per_layer == place:
            by_name.setdefault(option.name, []).append(option)
    return [tuple(options) for options in by_name.values() if len(options) == end // slots_per_layer]


def _passed(problem: Problem, one: _Part, rest: _Part) -> float:
    """By how much both together pass the limits, all of them together; 0 where they hold."""
    return math.fsum(limit.passed(one.costs[limit.cost] + rest.costs[limit.cost]) for limit in problem.limits)
