"""Baseline: ShortGPT (arXiv 2403.03853, section 3): drop whole layers, those of the least block influence first.

Block influence is one minus the mean cosine between a layer's input and its output; it is measured elsewhere and comes
in as numbers. This file does not know how a layer that stays could be made cheaper: it stays as the parent has it.
"""

import math
import time
from collections.abc import Sequence

from solvers.line import check_tiling, score_bound
from solvers.problem import Infeasible, Option, Problem, Solution, total_costs

_SKIPPED_LAYER = "skip+skip"
_SKIPPED_SLOT = "skip"


def drop_layers(
    problem: Problem, parent: Sequence[Option], block_influence: Sequence[float], *, slots_per_layer: int = 2
) -> Solution:
    """The parent less its least influential layers: the fewest, in that order, that bring it within the limits.

    `parent` are the options of the problem that stand for the parent as it is, in any order; `block_influence` is one
    number per layer. A layer that has neither the option "skip+skip" nor "skip" at each of its slots is kept. Raises
    Infeasible where no number of dropped layers meets the limits, and ValueError where `parent` does not tile the
    layers or the influences do not match them.
    """
    started = time.monotonic()
    check_tiling(problem)
    influence = _checked(problem, block_influence, slots_per_layer)
    layers = _layers(problem, parent, slots_per_layer)
    skips = [_skip(problem, layer, slots_per_layer) for layer in range(len(layers))]
    droppable = sorted((layer for layer, skip in enumerate(skips) if skip), key=influence.__getitem__)
    for count in range(len(droppable) + 1):
        dropped = set(droppable[:count])
        chosen = [option for layer in range(len(layers)) for option in (skips if layer in dropped else layers)[layer]]
        totals = total_costs(chosen)
        if all(limit.holds(totals[limit.cost]) for limit in problem.limits):
            return Solution.of(problem, chosen, score_bound(problem), time.monotonic() - started, "shortgpt")
    raise Infeasible.of_choice(problem, chosen, f"with {len(droppable)} layers dropped, all that can be")


def _checked(problem: Problem, block_influence: Sequence[float], slots_per_layer: int) -> Sequence[float]:
    if slots_per_layer < 1 or problem.slots % slots_per_layer:
        raise ValueError(f"{problem.slots} slots are not layers of {slots_per_layer} slots")
    layers = problem.slots // slots_per_layer
    if len(block_influence) != layers:
        raise ValueError(f"{len(block_influence)} block influences for {layers} layers")
    for layer, influence in enumerate(block_influence):
        if not math.isfinite(influence):
            raise ValueError(f"the block influence of layer {layer} is {influence}; it must be a finite number")
    return block_influence


def _layers(problem: Problem, parent: Sequence[Option], slots_per_layer: int) -> list[list[Option]]:
    """The parent's options by layer."""
    layers: list[list[Option]] = [[] for _ in range(problem.slots // slots_per_layer)]
    slot = 0
    for option in sorted(parent, key=lambda option: option.first):
        if option.first != slot or option.end > problem.slots:
            raise ValueError(f"the parent's options do not tile the slots: {option}, where slot {slot} is next")
        if option.first // slots_per_layer != (option.end - 1) // slots_per_layer:
            raise ValueError(f"the parent's option {option} spans layers, so they cannot be dropped one by one")
        layers[option.first // slots_per_layer].append(option)
        slot = option.end
    if slot != problem.slots:
        raise ValueError(f"the parent's options cover {slot} of {problem.slots} slots")
    return layers


def _skip(problem: Problem, layer: int, slots_per_layer: int) -> list[Option]:
    """The options that leave a layer out; none where the problem has no such options."""
    first = layer * slots_per_layer
    at_layer = {option.key: option for option in problem.options if first <= option.first < first + slots_per_layer}
    whole = at_layer.get((first, slots_per_layer, _SKIPPED_LAYER))
    if whole is not None:
        return [whole]
    slots = [at_layer.get((slot, 1, _SKIPPED_SLOT)) for slot in range(first, first + slots_per_layer)]
    found = [option for option in slots if option is not None]
    return found if len(found) == slots_per_layer else []
