"""Partial tilings from the first slot on, all that may become a tiling near the bound: labels.

Dynamic programming with bounds (Marsten and Morin, 1978). What a label is charged and a shortest path through the slots
that are left bound what it can become, for any prices of the limits. The best prices are known for each step before it
is taken; where labels are many, other prices near them and far bound them from other sides, so that one that has used
too much of one limit and too little of another is soon seen to be lost. Of labels with the same sums the lightest does.

Legend of shape suffixes: L labels, O options, R rows, P price vectors, S slots and the end.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from solvers.line import Indices, Line, Weights
from solvers.reach import over_best
from solvers.scaled import Scaled

MOST = 12_000_000
"""Labels held at once, what leads back from those far behind."""
MERGED = 1e-12
"""Sums in cells of this size are the same."""

_MANY = 2_000
"""From so many at a slot on it pays to look at them from several sides."""
_NEW = 4
"""What a new label takes is so much more."""
_BLOCK = 65_536
_USELESS = 0.97
_TRIED = 10_000
"""Merging that left so large a share of so many labels is not tried again."""
_SPREADS = (0.03, 0.1, 0.3, 1.0)
_PRICES = 32
"""Price vectors for each spread."""
_SAMPLE = 500
_TELLING = 8


class CrowdedError(Exception):
    """More labels than can be held."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels at one slot: by how much each is over the bound, its sums, its last option, the label it was before."""

    over_L: Weights
    sums_LR: Weights
    option_L: NDArray[np.int32]
    before_L: NDArray[np.int32]

    @staticmethod
    def together(some: list["Labels"]) -> "Labels":
        if len(some) == 1:
            return some[0]
        return Labels(*map(np.concatenate, zip(*(vars(one).values() for one in some), strict=True)))

    @property
    def traces(self) -> "Labels":
        """What leads back from later labels."""
        return replace(self, over_L=self.over_L[:0].copy(), sums_LR=self.sums_LR[:0].copy())

    def with_one(self, option: int, over_O: Weights, values_OR: Weights) -> "Labels":
        """All of them with the same option."""
        every = np.arange(len(self.over_L), dtype=np.int32)
        return Labels(
            self.over_L + over_O[option], self.sums_LR + values_OR[option], np.full_like(every, option), every
        )

    def only(self, kept: NDArray[np.bool_] | Indices) -> "Labels":
        return Labels(*(values[kept] for values in vars(self).values()))


class Labelling:
    """The labels at every slot up to `slot`, and past it those that an option from before it leads to.

    Of labels that lie farther back than the longest option reaches only what leads to others is kept.
    """

    def __init__(self, scaled: Scaled, line: Line, prices_R: Weights, distance: float, merging: bool):
        self.line = line
        self.slot = 0
        self._distance = distance + scaled.rounding(prices_R)
        self._over_O = over_best(line, scaled.charged(prices_R))
        self._scaled, self._prices_R = scaled, prices_R
        self._merging = merging
        self._longest = int((line.ends - line.firsts).max())
        self._leaving: list[list[Indices]] = [[] for _ in range(line.slots)]
        for step, first in enumerate(line.steps.firsts):
            options = line.steps.options(step)
            self._leaving[first].append(options[np.argsort(self._over_O[options], kind="stable")])
        nothing = np.zeros(1, dtype=np.int32)
        self._at = {0: Labels(np.zeros(1), np.zeros((1, len(scaled.most_R))), nothing, nothing)}
        self._choices: set[int] = set()
        self._held = self._seen = self._left = 0
        self._taken = self._next()

    def at(self, slot: int) -> Labels | None:
        """The labels at a slot, None where there are none."""
        return self._at.get(slot)

    @property
    def coming(self) -> int:
        """How many labels the next step makes, before it is seen which of them are lost."""
        return sum(int(taken_L.sum()) for _, taken_L in self._taken)

    def step(self) -> None:
        """Follows the labels at its slot, and goes on to the next. Raises CrowdedError."""
        for options, taken_L in self._taken:
            self._take(self._at[self.slot], options, taken_L)
        self.slot += 1
        if self.slot in self._at:
            if self._merging and self.slot in self._choices and len(self._at[self.slot].over_L) >= _MANY:
                self._at[self.slot] = self._merged(self._at[self.slot])
            self._held += len(self._at[self.slot].over_L)
        self._taken = self._next()
        past = self.slot - self._longest - 1
        if past in self._at:
            self._at[past] = self._at[past].traces

    def chosen(self, slot: int, label: int) -> list[int]:
        """The options of a label, the last one first."""
        chosen = []
        while slot:
            here = self._at[slot]
            option = int(here.option_L[label])
            chosen.append(option)
            slot, label = int(self.line.firsts[option]), int(here.before_L[label])
        return chosen

    def _next(self) -> list[tuple[Indices, Indices]]:
        """Options that begin at its slot, and how many of them each label there takes."""
        here = self._at.get(self.slot)
        if here is None or self.slot == self.line.slots:
            return []
        room_L = self._distance - here.over_L
        leaving = self._leaving[self.slot]
        taken = [(options, np.searchsorted(self._over_O[options], room_L)) for options in leaving]
        return [(options, taken_L) for options, taken_L in taken if np.any(taken_L)]

    def _take(self, here: Labels, options: Indices, taken_L: Indices) -> None:
        """Each label with the first so many of the options, where they may lead to a tiling near the bound."""
        end = int(self.line.ends[options[0]])
        if end not in self._at and taken_L.min() == taken_L.max() == 1:
            self._at[end] = here.with_one(int(options[0]), self._over_O, self._scaled.values_OR)
            return
        self._choices.add(end)
        ends_L = np.cumsum(taken_L)
        found = [self._at[end]] if end in self._at else []
        start, held = 0, self._held
        while start < len(taken_L):
            done = int(ends_L[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends_L, done + _BLOCK, side="right")))
            before = np.repeat(np.arange(start, stop, dtype=np.int32), taken_L[start:stop])
            option = options[np.arange(done, done + len(before)) - (ends_L - taken_L)[before]]
            over = here.over_L[before] + self._over_O[option]
            sums = here.sums_LR[before] + self._scaled.values_OR[option]
            new = Labels(over, sums, option.astype(np.int32), before)
            start = stop
            if len(taken_L) >= _MANY and len(before):
                new = new.only(self._sides.near(end, new, self._distance))
            held += _NEW * len(new.over_L)
            if held > MOST:
                raise CrowdedError
            found.append(new)
        if found:
            self._at[end] = Labels.together(found)

    @cached_property
    def _sides(self) -> "_Sides":
        return _Sides(self._scaled, self.line, self._prices_R)

    def _merged(self, here: Labels) -> Labels:
        """The lightest of labels whose sums are the same."""
        cells_LR = np.floor(here.sums_LR / MERGED).astype(np.int64)
        mixed_R = np.random.default_rng(1).integers(1, 2**62, cells_LR.shape[1])
        order = np.lexsort((here.over_L, cells_LR @ mixed_R))
        is_new = np.ones(len(order), dtype=np.bool_)
        is_new[1:] = np.any(cells_LR[order[1:]] != cells_LR[order[:-1]], axis=1)
        merged = here.only(order[is_new])
        self._seen, self._left = self._seen + len(order), self._left + len(merged.over_L)
        self._merging = self._seen < _TRIED or self._left < _USELESS * self._seen
        return merged


class _Sides:
    """Prices near the best and far, always the same, and what they say of labels beside what the best do."""

    def __init__(self, scaled: Scaled, line: Line, prices_R: Weights):
        seeded = np.random.default_rng(0)
        spreads = np.repeat(_SPREADS, _PRICES)[:, None]
        prices_PR = prices_R * np.exp(spreads * seeded.standard_normal((len(spreads), len(prices_R))))
        self._more_RP = (prices_PR - prices_R).T
        best_S = line.onward(scaled.charged(prices_R))
        onward_SP = _onward(line, scaled.weights_O[:, None] + scaled.values_OR @ prices_PR.T)
        with np.errstate(invalid="ignore"):
            self._more_SP = onward_SP - best_S[:, None] - scaled.most_R @ self._more_RP

    def near(self, slot: int, labels: Labels, distance: float) -> NDArray[np.bool_]:
        """Which labels are not seen to be lost, by the few prices that tell most of a sample of them."""
        sample = slice(None, None, max(1, len(labels.over_L) // _SAMPLE))
        more_LP = labels.sums_LR[sample] @ self._more_RP + self._more_SP[slot]
        lost_LP = labels.over_L[sample][:, None] + more_LP >= distance
        telling = []
        for _ in range(_TELLING):
            best = int(lost_LP.sum(0).argmax())
            if not np.any(lost_LP[:, best]):
                break
            telling.append(best)
            lost_LP = lost_LP[~lost_LP[:, best]]
        more_L = np.zeros(len(labels.over_L))
        for price in telling:
            np.maximum(more_L, labels.sums_LR @ self._more_RP[:, price] + self._more_SP[slot, price], out=more_L)
        is_near: NDArray[np.bool_] = labels.over_L + more_L < distance
        return is_near


def _onward(line: Line, weights_OP: Weights) -> Weights:
    """`Line.onward` for several weights at once, [S, P]."""
    least_SP = np.full((line.slots + 1, weights_OP.shape[1]), np.inf)
    least_SP[-1] = 0
    least_KP = np.minimum.reduceat(weights_OP[line.steps.order], line.steps.starts, axis=0)
    for first, end, least_P in zip(line.steps.firsts[::-1], line.steps.ends[::-1], least_KP[::-1], strict=True):
        np.minimum(least_SP[first], least_SP[end] + least_P, out=least_SP[first])
    return least_SP
