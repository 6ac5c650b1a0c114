"""Partial tilings from the first slot on, all that may become a tiling near the bound: labels.

Dynamic programming with bounds (Marsten and Morin, 1978). What a label is charged and a shortest path through the slots
that are left bound what it can become, for any prices of the limits. The best prices are known for each step before it
is taken; where labels are many, other prices near them and far bound them from other sides, so that one that has used
too much of one limit and too little of another is soon seen to be lost. Of labels with the same sums the lightest does.

Legend of shape suffixes: L labels, O options, R rows, P price vectors, S slots and the end.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.line import Indices, Line, Weights
from solvers.reach import over_best
from solvers.scaled import Scaled

MOST = 6_000_000
"""Labels held at once."""
MERGED = 1e-12
"""Sums that differ by less are the same."""

_MANY = 2_000
"""From so many at a slot on it pays to look at them from several sides."""
_BLOCK = 8_192
_USELESS = 0.95
_SPREADS = (0.01, 0.03, 0.1, 0.3)
_PRICES = 6
"""Price vectors for each spread."""


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
        return some[0] if len(some) == 1 else Labels(*map(np.concatenate, zip(*(vars(s).values() for s in some))))

    def only(self, kept: NDArray[np.bool_] | Indices) -> "Labels":
        return Labels(*(values[kept] for values in vars(self).values()))


class Labelling:
    """The labels at every slot up to the first that is `until` or later, and past it those one option leads to."""

    def __init__(self, scaled: Scaled, line: Line, prices_R: Weights, distance: float, merging: bool):
        self.line = line
        self.at: dict[int, Labels] = {}
        self._scaled = scaled
        self._distance = distance + scaled.rounding(prices_R)
        self._over_O = over_best(line, scaled.charged(prices_R))
        self._merging = merging
        self._sides = _Sides(scaled, line, prices_R)
        self._leaving: list[list[Indices]] = [[] for _ in range(line.slots)]
        for step, first in enumerate(line.steps.firsts):
            options = line.steps.options(step)
            self._leaving[first].append(options[np.argsort(self._over_O[options], kind="stable")])

    def follow(self, until: int) -> Iterator[None]:
        """Slot by slot, with a pause after each. Raises CrowdedError."""
        nothing = np.zeros(1, dtype=np.int32)
        start = Labels(np.zeros(1), np.zeros((1, len(self._scaled.most_R))), nothing, nothing)
        waiting: dict[int, list[Labels]] = {0: [start]}
        held = 0
        for slot in range(self.line.slots + 1):
            if slot not in waiting:
                continue
            here = self._thinned(slot, Labels.together(waiting.pop(slot)))
            self.at[slot] = here
            for options in self._leaving[slot] if slot < until else ():
                taken_L = np.searchsorted(self._over_O[options], self._distance - here.over_L)
                held += int(taken_L.sum())
                if held > MOST:
                    raise CrowdedError
                if np.any(taken_L):
                    waiting.setdefault(int(self.line.ends[options[0]]), []).append(self._extended(here, options, taken_L))
            yield

    def chosen(self, slot: int, label: int) -> list[int]:
        """The options of a label, the last one first."""
        chosen = []
        while slot:
            here = self.at[slot]
            option = int(here.option_L[label])
            chosen.append(option)
            slot, label = int(self.line.firsts[option]), int(here.before_L[label])
        return chosen

    def _extended(self, here: Labels, options: Indices, taken_L: Indices) -> Labels:
        """Each label by the first so many of the options."""
        before = np.repeat(np.arange(len(taken_L), dtype=np.int32), taken_L)
        option = options[np.arange(len(before)) - np.repeat(np.cumsum(taken_L) - taken_L, taken_L)]
        over, sums = here.over_L[before] + self._over_O[option], here.sums_LR[before] + self._scaled.values_OR[option]
        return Labels(over, sums, option.astype(np.int32), before)

    def _thinned(self, slot: int, here: Labels) -> Labels:
        if len(here.over_L) < _MANY:
            return here
        here = here.only(self._sides.bound(slot, here) < self._distance)
        return _merged(here) if self._merging and len(here.over_L) else here


class _Sides:
    """Prices near the best and far, always the same, and what they say of labels beside what the best do."""

    def __init__(self, scaled: Scaled, line: Line, prices_R: Weights):
        seeded = np.random.default_rng(0)
        spreads = np.repeat(_SPREADS, _PRICES)[:, None]
        prices_PR = prices_R * np.exp(spreads * seeded.standard_normal((len(spreads), len(prices_R))))
        self._more_RP = (prices_PR - prices_R).T
        best_S = line.onward(scaled.charged(prices_R))
        with np.errstate(invalid="ignore"):
            self._more_SP = np.stack([line.onward(scaled.charged(other_R)) - best_S for other_R in prices_PR], axis=1)
        self._more_SP -= scaled.most_R @ self._more_RP

    def bound(self, slot: int, labels: Labels) -> Weights:
        """By how much each label is over the bound by the worst of the prices."""
        found = [
            (labels.sums_LR[start : start + _BLOCK] @ self._more_RP + self._more_SP[slot]).max(1)
            for start in range(0, len(labels.over_L), _BLOCK)
        ]
        return labels.over_L + np.concatenate(found)


def _merged(here: Labels) -> Labels:
    """The lightest of labels whose sums are the same."""
    key_L = here.sums_LR @ np.random.default_rng(1).uniform(1, 2, here.sums_LR.shape[1])
    order = np.argsort(key_L)
    order = order[np.lexsort((here.over_L[order], np.cumsum(np.diff(key_L[order], prepend=-np.inf) > MERGED)))]
    is_new = np.ones(len(order), dtype=np.bool_)
    is_new[1:] = np.any(np.abs(np.diff(here.sums_LR[order], axis=0)) > MERGED, axis=1)
    return here.only(order[is_new])
