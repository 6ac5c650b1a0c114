"""Baseline: the same choice in every layer, as in a smaller model of the family.

One name per slot of a layer (one attention, one FFN), of options that cover a single slot and stand in every layer. All
combinations are tried; it does not know, or use, that layers differ.
"""

import math
import time
from collections.abc import Sequence
from itertools import product

from solvers.errors import Infeasible
from solvers.exact.shortest_path import check_tiling, score_bound
from solvers.problem import Option, Problem, Solution, infeasible_choice, total_costs
from solvers.refine.joint import joined, paired, parted


def uniform(problem: Problem, *, slots_per_layer: int = 2, layers: int | None = None) -> Solution:
    """The uniform solution of least score. Behind the slots of `layers` layers, if there are more, one option covers
    the rest, and each such is tried; None: all slots are layers.

    Raises Infeasible where no uniform choice meets the limits, or there is none, and ValueError where the slots are not
    whole layers.
    """
    started = time.monotonic()
    if slots_per_layer < 1 or problem.slots % slots_per_layer:
        raise ValueError(f"{problem.slots} slots are not layers of {slots_per_layer} slots")
    check_tiling(problem)
    end = problem.slots if layers is None else layers * slots_per_layer
    by_place = [_in_every_layer(problem, place, slots_per_layer, end) for place in range(slots_per_layer)]
    if end < problem.slots:
        by_place.append([(one,) for one in problem.options if (one.first, one.end) == (end, problem.slots)])
    for place, found in enumerate(by_place):
        if not found:
            raise Infeasible(f"uniform: no single-slot option stands at slot {place} of every layer")
    pairs = paired(problem)
    # Options that were scored together count with their joint score.
    choices = [parted(joined(_in_order(picked), pairs), problem) for picked in product(*by_place)]
    within = [choice for choice in choices if _passed(problem, choice) == 0]
    if not within:
        nearest = min(choices, key=lambda choice: _passed(problem, choice))
        raise infeasible_choice(problem, nearest, "no uniform choice meets the limits; in the nearest one")
    best = min(within, key=lambda choice: math.fsum(option.score for option in choice))
    return Solution.of(problem, best, score_bound(problem), time.monotonic() - started, "uniform")


def _in_order(picked: Sequence[Sequence[Option]]) -> list[Option]:
    return sorted((option for options in picked for option in options), key=lambda option: option.first)


def _in_every_layer(problem: Problem, place: int, slots_per_layer: int, end: int) -> list[tuple[Option, ...]]:
    """For each name that stands at this slot of every layer before slot `end`, its options, one per layer."""
    by_name: dict[str, list[Option]] = {}
    for option in problem.options:
        if option.span == 1 and option.first < end and option.first % slots_per_layer == place:
            by_name.setdefault(option.name, []).append(option)
    return [tuple(options) for options in by_name.values() if len(options) == end // slots_per_layer]


def _passed(problem: Problem, choice: Sequence[Option]) -> float:
    """By how much it passes the limits, all of them together; 0 where they hold."""
    totals = total_costs(choice)
    return math.fsum(limit.passed(totals[limit.cost]) for limit in problem.limits)
