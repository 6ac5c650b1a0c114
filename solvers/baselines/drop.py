"""A parent with whole layers dropped: which options leave a layer out, and an order followed until the limits hold.

ShortGPT and SLEB share this. This file does not know where the order comes from, nor how a layer that stays could be
made cheaper: it stays as the parent has it.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import sub

from solvers.exact.shortest_path import score_bound
from solvers.problem import Option, Problem, Solution, infeasible_choice, total_costs

_SKIPPED = "skip"

Options = tuple[Option, ...]


@dataclass(frozen=True)
class Layers:
    """The parent's own options of each layer, and those that leave it out: none if it cannot be left out. `behind` are
    its options behind the last layer."""

    own: tuple[Options, ...]
    skips: tuple[Options, ...]
    behind: Options = ()

    @staticmethod
    def of(problem: Problem, parent: Sequence[Option], slots_per_layer: int, layers: int | None = None) -> "Layers":
        """`parent` are the options of the problem that stand for the parent as it is, in any order. Behind the slots of
        `layers` layers there may be more; None: all slots are layers.

        Raises ValueError where the slots are not whole layers, or `parent` does not tile them layer by layer.
        """
        found = _by_layer(problem, parent, layers_of(problem, slots_per_layer), slots_per_layer)
        own, behind = found[:layers], found[len(found) if layers is None else layers :]
        skips = tuple(_skip(problem, layer, slots_per_layer) for layer in range(len(own)))
        return Layers(own, skips, tuple(option for options in behind for option in options))

    @property
    def droppable(self) -> tuple[int, ...]:
        """The layers that can be left out, first to last."""
        return tuple(layer for layer, skip in enumerate(self.skips) if skip)

    def without(self, dropped: Collection[int]) -> Options:
        """The parent with these layers left out, in slot order."""
        picked = [(self.skips if layer in dropped else self.own)[layer] for layer in range(len(self.own))]
        return (*(option for options in picked for option in options), *self.behind)


def layers_of(problem: Problem, slots_per_layer: int) -> int:
    """How many layers the slots are. Raises ValueError where they are not whole ones."""
    if slots_per_layer < 1 or problem.slots % slots_per_layer:
        raise ValueError(f"{problem.slots} slots are not layers of {slots_per_layer} slots")
    return problem.slots // slots_per_layer


def fewest_dropped(problem: Problem, layers: Layers, candidates: Collection[int]) -> int:
    """How many of the candidate layers have to go at least, whichever they are, before the maximums hold.

    Tells how much of an order is worth working out before it is followed. Raises Infeasible, as `drop_until_within`
    does, where all of the candidates would not do.
    """
    whole, most = total_costs(layers.without(())), layers.without(candidates)
    least = 0
    for limit in (limit for limit in problem.limits if not limit.minimum):
        saved = [total_costs(layers.own[i])[limit.cost] - total_costs(layers.skips[i])[limit.cost] for i in candidates]
        left = list(accumulate(sorted(saved, reverse=True), sub, initial=whole[limit.cost]))
        enough = next((dropped for dropped, total in enumerate(left) if limit.holds(total)), None)
        if enough is None and min(saved, default=0.0) >= 0 and not limit.holds(total_costs(most)[limit.cost]):
            raise infeasible_choice(problem, most, _all_dropped(len(candidates)))
        least = max(least, len(candidates) if enough is None else enough)
    return least


def drop_until_within(problem: Problem, layers: Layers, order: Iterable[int], started: float, solver: str) -> Solution:
    """The parent less the first layers of `order`: the fewest that bring it within the limits.

    The order is asked for its next layer only when one more has to go, so it may be worked out as it is followed.
    `started` is the time (`time.monotonic`, seconds) from which the solution's `seconds` count, `solver` its name.
    Raises Infeasible where the order ends first.
    """
    dropped: list[int] = []
    left = iter(order)
    while True:
        chosen = layers.without(dropped)
        totals = total_costs(chosen)
        if all(limit.holds(totals[limit.cost]) for limit in problem.limits):
            return Solution.of(problem, chosen, score_bound(problem), time.monotonic() - started, solver)
        layer = next(left, None)
        if layer is None:
            raise infeasible_choice(problem, chosen, _all_dropped(len(dropped)))
        dropped.append(layer)


def _all_dropped(layers: int) -> str:
    return f"with {layers} layers dropped, the most possible"


def _by_layer(problem: Problem, parent: Sequence[Option], layers: int, slots_per_layer: int) -> tuple[Options, ...]:
    """The parent's options by layer."""
    found: list[list[Option]] = [[] for _ in range(layers)]
    slot = 0
    for option in sorted(parent, key=lambda option: option.first):
        if option.first != slot or option.end > problem.slots:
            raise ValueError(f"the parent's options do not tile the slots: {option}, where slot {slot} is next")
        if option.first // slots_per_layer != (option.end - 1) // slots_per_layer:
            raise ValueError(f"the parent's option {option} spans layers, so they cannot be dropped one by one")
        found[option.first // slots_per_layer].append(option)
        slot = option.end
    if slot != problem.slots:
        raise ValueError(f"the parent's options cover {slot} of {problem.slots} slots")
    return tuple(map(tuple, found))


def _skip(problem: Problem, layer: int, slots_per_layer: int) -> Options:
    """The options that leave a layer out; none where the problem has no such options."""
    first = layer * slots_per_layer
    at_layer = {option.key: option for option in problem.options if first <= option.first < first + slots_per_layer}
    whole = [option for option in at_layer.values() if option.parts == (_SKIPPED,) * slots_per_layer]
    if whole:
        return (whole[0],)
    slots = [at_layer.get((slot, 1, _SKIPPED)) for slot in range(first, first + slots_per_layer)]
    found = tuple(option for option in slots if option is not None)
    return found if len(found) == slots_per_layer else ()
