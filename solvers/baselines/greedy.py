"""Baseline: the greedy search that Puzzle (arXiv 2411.19146) compares its mixed-integer program with.

Each layer gets an equal share of every budget. Layers are visited in ascending mean score of their variants; each takes
the best-scoring variant within its share and what the layers before it left over. A variant is any tiling of the
layer's own slots; options that span layers are not in the paper's space and not used.
"""

import math
import time
from collections.abc import Sequence

from solvers.errors import Infeasible
from solvers.exact.shortest_path import check_tiling, score_bound
from solvers.problem import LIMIT_TOLERANCE, Constraint, Option, Problem, Solution, infeasible_choice, total_costs

Variant = tuple[Option, ...]


def greedy(problem: Problem, *, slots_per_layer: int = 2) -> Solution:
    """The greedy solution. The paper leaves open what to do where no variant fits what is left: here the one that
    overdraws it least, in shares of the limits, and the layers after it pay.

    Raises Infeasible where this ends over a limit, or where a layer cannot be tiled by itself, and ValueError where the
    slots are not whole layers.
    """
    started = time.monotonic()
    check_tiling(problem)
    layers = _variants_by_layer(problem, slots_per_layer)
    limits = problem.limits
    left = [0.0] * len(limits)
    chosen: list[Option] = []
    for variants in sorted(layers, key=lambda variants: math.fsum(map(_score, variants)) / len(variants)):
        left = [rest + limit.sign * limit.value / len(layers) for rest, limit in zip(left, limits, strict=True)]
        variant = min(variants, key=lambda variant: (_overdraft(variant, limits, left), _score(variant)))
        left = [rest - used for rest, used in zip(left, _used(variant, limits), strict=True)]
        chosen.extend(variant)
    if not all(limit.holds(total_costs(chosen)[limit.cost]) for limit in limits):
        raise infeasible_choice(problem, chosen, "greedy, taking the layers one by one, ends outside the limits")
    return Solution.of(problem, chosen, score_bound(problem), time.monotonic() - started, "greedy")


def _variants_by_layer(problem: Problem, slots_per_layer: int) -> list[list[Variant]]:
    """For each layer all tilings of its slots alone."""
    if slots_per_layer < 1 or problem.slots % slots_per_layer:
        raise ValueError(f"{problem.slots} slots are not layers of {slots_per_layer} slots")
    at: list[list[Option]] = [[] for _ in range(problem.slots)]
    for option in problem.options:
        at[option.first].append(option)
    layers = [_tilings(at, first, first + slots_per_layer) for first in range(0, problem.slots, slots_per_layer)]
    for layer, variants in enumerate(layers):
        if not variants:
            raise Infeasible(f"greedy: no options tile layer {layer} by itself")
    return layers


def _tilings(at: Sequence[Sequence[Option]], first: int, end: int) -> list[Variant]:
    if first == end:
        return [()]
    return [(option, *rest) for option in at[first] if option.end <= end for rest in _tilings(at, option.end, end)]


def _score(variant: Variant) -> float:
    return math.fsum(option.score for option in variant)


def _used(variant: Variant, limits: Sequence[Constraint]) -> list[float]:
    """Its use of each limit. A minimum is a maximum with its sign turned, so its use is negative."""
    return [limit.sign * math.fsum(option.costs[limit.cost] for option in variant) for limit in limits]


def _overdraft(variant: Variant, limits: Sequence[Constraint], left: Sequence[float]) -> float:
    """By how much it passes what is left, each limit in shares of itself; 0 where it fits."""
    over = zip(_used(variant, limits), left, limits, strict=True)
    return math.fsum(
        max(0.0, (used - rest) / (abs(limit.value) or 1.0) - LIMIT_TOLERANCE) for used, rest, limit in over
    )
