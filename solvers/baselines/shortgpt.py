"""Baseline: ShortGPT (arXiv 2403.03853, section 3): drop whole layers, those of the least block influence first.

Block influence is one minus the mean cosine between a layer's input and its output; it is measured elsewhere and comes
in as numbers. This file does not know how a layer that stays could be made cheaper: it stays as the parent has it.
"""

import math
import time
from collections.abc import Sequence

from solvers.baselines.drop import Layers, drop_until_within
from solvers.errors import ProblemError
from solvers.exact.shortest_path import check_tiling
from solvers.problem import Option, Problem, Solution


def drop_layers(
    problem: Problem,
    parent: Sequence[Option],
    block_influence: Sequence[float],
    *,
    slots_per_layer: int = 2,
    layers: int | None = None,
) -> Solution:
    """The parent less its least influential layers: the fewest, in that order, that bring it within the limits.

    `parent` are the options of the problem that stand for the parent as it is, in any order; `block_influence` is one
    number per layer. A layer that no options leave out is kept. Behind the slots of `layers` layers there may be more,
    which stay; None: all slots are layers. Raises Infeasible where no number of dropped layers meets the limits, and
    ValueError where `parent` does not tile the layers or the influences do not match them.
    """
    started = time.monotonic()
    check_tiling(problem)
    found = Layers.of(problem, parent, slots_per_layer, layers)
    influence = _checked(block_influence, len(found.own))
    return drop_until_within(problem, found, sorted(found.droppable, key=influence.__getitem__), started, "shortgpt")


def _checked(block_influence: Sequence[float], layers: int) -> Sequence[float]:
    if len(block_influence) != layers:
        raise ValueError(f"{len(block_influence)} block influences for {layers} layers")
    for layer, influence in enumerate(block_influence):
        if not math.isfinite(influence):
            raise ProblemError(f"the block influence of layer {layer} is {influence}; it must be a finite number")
    return block_influence
