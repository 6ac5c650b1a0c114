"""Baseline: SLEB (arXiv 2402.09025, section 3): drop whole blocks one by one, each time the one the model misses least.

This is its metric 3: the loss with a block left out of the model as already reduced. The losses come from the caller.
The first and the last block stay, as in the released code. A block is what this package calls a layer.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from solvers.baselines.drop import Layers, drop_until_within, fewest_dropped
from solvers.errors import ProblemError
from solvers.exact.shortest_path import check_tiling
from solvers.problem import Option, Problem, Solution

LossWithout = Callable[[Sequence[int], Sequence[int]], Sequence[float]]
"""(removed, candidates) to one loss per candidate, in their order: of the model without the removed layers and without
that candidate. `removed` is in order of removal, `candidates` ascending; no layer is in both."""


@dataclass(frozen=True)
class Round:
    """One round: which layer went, and each candidate's loss (the caller's unit) with it left out too."""

    removed: int
    losses: Mapping[int, float]


@dataclass(frozen=True)
class Removal:
    """A solution, and how SLEB came to it round by round."""

    solution: Solution
    rounds: tuple[Round, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """The layers left out, in order of removal."""
        return tuple(each.removed for each in self.rounds)

    @property
    def evaluations(self) -> int:
        """How many losses were asked for. Where all L layers can be left out: the sum of L - i - 2 over rounds i."""
        return sum(len(each.losses) for each in self.rounds)


def drop_one_by_one(
    problem: Problem,
    parent: Sequence[Option],
    loss_without: LossWithout,
    *,
    slots_per_layer: int = 2,
    layers: int | None = None,
) -> Removal:
    """The parent less the fewest layers, in the order of `removal_rounds`, that bring it within the limits.

    `parent` are the options of the problem that stand for the parent as it is, in any order. A layer that no options
    leave out is kept, as are the first and the last. A round's losses are asked for when one more layer has to go.
    Behind the slots of `layers` layers there may be more, which stay; None: all slots are layers.

    Raises Infeasible where no number of dropped layers meets the limits, before any loss is asked for where no order
    can, and ValueError where `parent` does not tile the layers or a loss is not finite.
    """
    started = time.monotonic()
    check_tiling(problem)
    found = Layers.of(problem, parent, slots_per_layer, layers)
    rounds_needed(problem, found)
    rounds: list[Round] = []

    def order() -> Iterator[int]:
        for each in removal_rounds(_inner(found), loss_without):
            rounds.append(each)
            yield each.removed

    solution = drop_until_within(problem, found, order(), started, "sleb")
    return Removal(solution, tuple(rounds))


def rounds_needed(problem: Problem, layers: Layers) -> int:
    """How many rounds there are at least before the limits hold; where all layers cost alike, exactly.

    Raises Infeasible where they cannot hold.
    """
    return fewest_dropped(problem, layers, _inner(layers))


def removal_rounds(candidates: Sequence[int], loss_without: LossWithout) -> Iterator[Round]:
    """Round by round until no candidate is left: the one whose loss is least goes, the shallowest of equals.

    A round's losses are asked for in one call, when the round is. Raises ValueError, naming layer and round (counted
    from 1), where a loss is NaN or infinite: the least of such numbers means nothing.
    """
    left = sorted(candidates)
    removed: list[int] = []
    while left:
        losses = loss_without(tuple(removed), tuple(left))
        if len(losses) != len(left):
            raise ValueError(f"round {len(removed) + 1}: {len(losses)} losses for {len(left)} candidates")
        for layer, loss in zip(left, losses, strict=True):
            if not math.isfinite(loss):
                raise ProblemError(f"the loss without layer {layer} is {loss} in round {len(removed) + 1}")
        by_layer = dict(zip(left, losses, strict=True))
        least = min(left, key=by_layer.__getitem__)
        yield Round(least, by_layer)
        left.remove(least)
        removed.append(least)


def _inner(layers: Layers) -> tuple[int, ...]:
    """The layers that can be left out, but for the first and the last of all."""
    return tuple(layer for layer in layers.droppable if 0 < layer < len(layers.own) - 1)
