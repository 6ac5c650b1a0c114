"""Labels: partial tilings from the first slot on, all that can still become a tiling near the bound.

Dynamic programming with bounds (Marsten and Morin, 1978). For any prices of the limits, a label's charged weight plus a
shortest path through the remaining slots bounds what the label can become. This bound is known before a step is taken.
If labels are many, other price vectors, near the best and far from it, give more bounds, so that a label that uses too
much of one limit and too little of another is dropped early. From labels with equal sums only the lightest stays.

Legend of shape suffixes: L labels, O options, R rows, P price vectors, S slots and the end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from solvers.exact.memory import CrowdedError, Held
from solvers.exact.scaled import Scaled
from solvers.exact.search_width import over_best
from solvers.exact.shortest_path import Indices, Line, Weights

MOST = 12_000_000
"""The most labels held at once, including those of which only the path is kept."""
MERGED = 1e-12
"""Sums in the same cell of this size count as equal."""

_MANY = 2_000
"""From this number of labels at a slot on, bounds by several prices are worth their time."""
_NEW = 4
"""The memory of a label while it is made, as a multiple of its later memory."""
_BLOCK = 65_536
_CHUNK = 1_000_000
"""The most labels in one call of numpy: signals are handled between two calls."""
_USELESS = 0.97
_TRIED = 10_000
"""If merging leaves more than this share of at least this many labels, it is not tried again."""
_SPREADS = (0.03, 0.1, 0.3, 1.0)
_PRICES = 32
"""Price vectors for each spread."""
_SAMPLE = 500
_TELLING = 8
_SIDES_SHARE = 0.05
"""The share of the labels' memory that sums by many prices may use temporarily."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels at one slot: the excess of each over the bound, its sums, its last option, and its predecessor."""

    over_L: Weights
    sums_LR: Weights
    option_L: NDArray[np.int32]
    before_L: NDArray[np.int32]

    @staticmethod
    def together(some: list["Labels"]) -> "Labels":
        if len(some) == 1:
            return some[0]
        return Labels(*map(np.concatenate, zip(*(vars(one).values() for one in some), strict=True)))

    @staticmethod
    def bytes_of(count: int, rows: int) -> int:
        """The bytes of so many labels."""
        return count * (16 + 8 * rows)

    @property
    def bytes(self) -> int:
        return sum(values.nbytes for values in vars(self).values())

    @property
    def traces(self) -> "Labels":
        """The part that later labels need for their paths."""
        return replace(self, over_L=self.over_L[:0].copy(), sums_LR=self.sums_LR[:0].copy())

    def with_one(self, option: int, over_O: Weights, values_OR: Weights) -> "Labels":
        """All of them with the same option."""
        every = np.arange(len(self.over_L), dtype=np.int32)
        return Labels(
            self.over_L + over_O[option], self.sums_LR + values_OR[option], np.full_like(every, option), every
        )

    def only(self, kept: NDArray[np.bool_] | Indices | slice) -> "Labels":
        return Labels(*(values[kept] for values in vars(self).values()))


@dataclass(frozen=True, eq=False)
class _Taking:
    """Options that begin at one slot and end at another, sorted by their excess over the best, and the number of labels
    that they make. `is_one_each`: each label takes only the first option."""

    options: Indices
    makes: int
    is_one_each: bool


class Labelling:
    """The labels at every slot up to `slot`, and those past it that earlier options lead to. Labels farther back than
    the longest option keep only the paths of other labels. `held` counts the memory of all labels of a search.
    """

    def __init__(self, scaled: Scaled, line: Line, prices_R: Weights, distance: float, merging: bool, held: Held):
        self.line = line
        self.slot = 0
        self._distance = distance + scaled.rounding(prices_R)
        self._over_O = over_best(line, scaled.charged(prices_R))
        self._scaled, self._prices_R = scaled, prices_R
        self._rows = len(scaled.most_R)
        self._merging = merging
        self._longest = int((line.ends - line.firsts).max())
        self._leaving: list[list[Indices]] = [[] for _ in range(line.slots)]
        for step, first in enumerate(line.steps.firsts):
            options = line.steps.options(step)
            self._leaving[first].append(options[np.argsort(self._over_O[options], kind="stable")])
        self._held, self._count = held, 0
        self._at: dict[int, Labels] = {}
        nothing = np.zeros(1, dtype=np.int32)
        self._put(0, Labels(np.zeros(1), np.zeros((1, self._rows)), nothing, nothing))
        self._choices: set[int] = set()
        self._seen = self._left = 0
        self._next = self._taking()

    def at(self, slot: int) -> Labels | None:
        """The labels at a slot, None where there are none."""
        return self._at.get(slot)

    @property
    def coming(self) -> int:
        """The number of labels that the next step makes, before any of them are dropped."""
        return sum(taking.makes for taking in self._next)

    def step(self) -> Iterator[None]:
        """Extends the labels at its slot and moves to the next slot, in short pieces of work. Raises CrowdedError."""
        for taking in self._next:
            yield from self._take(self._at[self.slot], taking)
        self.slot += 1
        here = self._at.get(self.slot)
        if here is not None and self._merging and self.slot in self._choices and len(here.over_L) >= _MANY:
            yield from self._merge(here)
        self._next = self._taking()
        past = self.slot - self._longest - 1
        if past in self._at:
            self._put(past, self._at[past].traces)

    def chosen(self, slot: int, label: int) -> list[int]:
        """The options of a label, the last one first."""
        chosen = []
        while slot:
            here = self._at[slot]
            option = int(here.option_L[label])
            chosen.append(option)
            slot, label = int(self.line.firsts[option]), int(here.before_L[label])
        return chosen

    def _put(self, slot: int, labels: Labels) -> None:
        before = self._at.get(slot)
        self._at[slot] = labels
        self._held.bytes += labels.bytes - (before.bytes if before else 0)
        self._count += len(labels.option_L) - (len(before.option_L) if before else 0)

    def _taking(self) -> list[_Taking]:
        """The options that the labels at its slot take. They are only counted, because with many ends and many labels
        they would need too much memory."""
        here = self._at.get(self.slot)
        if here is None or self.slot == self.line.slots:
            return []
        found = []
        for options in self._leaving[self.slot]:
            makes, is_one_each = 0, True
            for start in range(0, len(here.over_L), _CHUNK):
                taken_L = self._taken(here, options, start)
                makes += int(taken_L.sum())
                is_one_each &= bool(taken_L.min() == taken_L.max() == 1)
            if makes:
                found.append(_Taking(options, makes, is_one_each))
        return found

    def _taken(self, here: Labels, options: Indices, start: int) -> Indices:
        """The number of options that each label of a chunk takes."""
        return np.searchsorted(self._over_O[options], self._distance - here.over_L[start : start + _CHUNK])

    def _take(self, here: Labels, taking: _Taking) -> Iterator[None]:
        """Each label extended by its first options, as far as these can lead to a tiling near the bound."""
        options = taking.options
        end = int(self.line.ends[options[0]])
        there = self._at.get(end)
        if there is None and taking.is_one_each:
            self._check(0, Labels.bytes_of(taking.makes, self._rows))
            self._put(end, here.with_one(int(options[0]), self._over_O, self._scaled.values_OR))
            return
        self._choices.add(end)
        found = [there] if there else []
        made = 0
        for new in self._made(here, options, end):
            made += len(new.over_L)
            # Joining the new and the old labels copies both.
            copied = Labels.bytes_of(2 * made, self._rows) + (there.bytes if there else 0)
            self._check(made, copied)
            found.append(new)
            yield None
        if found:
            self._put(end, Labels.together(found))

    def _made(self, here: Labels, options: Indices, end: int) -> Iterator[Labels]:
        """The labels at `end` that no bound rules out, a block at a time."""
        are_many = len(here.over_L) >= _MANY
        for begin in range(0, len(here.over_L), _CHUNK):
            taken_L = self._taken(here, options, begin)
            ends_L = np.cumsum(taken_L)
            start = 0
            while start < len(taken_L):
                done = int(ends_L[start - 1]) if start else 0
                stop = max(start + 1, int(np.searchsorted(ends_L, done + _BLOCK, side="right")))
                its = np.repeat(np.arange(start, stop), taken_L[start:stop])
                option = options[np.arange(done, done + len(its)) - (ends_L - taken_L)[its]]
                before = begin + its
                over = here.over_L[before] + self._over_O[option]
                sums = here.sums_LR[before] + self._scaled.values_OR[option]
                new = Labels(over, sums, option.astype(np.int32), before.astype(np.int32))
                start = stop
                if are_many and len(before):
                    new = new.only(self._sides.near(end, new, self._distance))
                yield new

    def _check(self, new: int, more_bytes: float) -> None:
        """Raises CrowdedError if this number of new labels or bytes is too large."""
        if self._count + _NEW * new > MOST:
            raise CrowdedError
        self._held.check(more_bytes)

    @cached_property
    def _sides(self) -> "_Sides":
        return _Sides(self._scaled, self.line, self._prices_R, _SIDES_SHARE * self._held.most_bytes)

    def _merge(self, here: Labels) -> Iterator[None]:
        """Keep only the lightest of the labels with equal sums at its slot. Leave them as they are if there is no room
        for a copy."""
        count = len(here.over_L)
        try:
            self._held.check(Labels.bytes_of(count, self._rows) + 40 * count)
        except CrowdedError:
            return
        mixed_R = np.random.default_rng(1).integers(1, 2**62, self._rows)
        mixed_L = np.empty(count, dtype=np.int64)
        for start in range(0, count, _CHUNK):
            mixed_L[start : start + _CHUNK] = _cells(here.sums_LR[start : start + _CHUNK]) @ mixed_R
            yield None
        # Equal sums have equal hashes, so labels of one range of hashes can be merged by themselves.
        lowest, highest = np.iinfo(np.int64).min, np.iinfo(np.int64).max
        edges = np.linspace(lowest, highest, -(-count // _CHUNK) + 1)[1:-1]
        range_L = np.searchsorted(edges, mixed_L) if len(edges) else None
        kept = []
        for part in range(len(edges) + 1):
            some = np.arange(count) if range_L is None else np.flatnonzero(range_L == part)
            order = some[np.lexsort((here.over_L[some], mixed_L[some]))]
            cells_LR = _cells(here.sums_LR[order])
            is_new = np.ones(len(order), dtype=np.bool_)
            is_new[1:] = np.any(cells_LR[1:] != cells_LR[:-1], axis=1)
            kept.append(order[is_new])
            yield None
        merged = here.only(np.concatenate(kept))
        self._seen, self._left = self._seen + count, self._left + len(merged.over_L)
        self._merging = self._seen < _TRIED or self._left < _USELESS * self._seen
        self._put(self.slot, merged)


def _cells(sums_LR: Weights) -> NDArray[np.int64]:
    return np.floor(sums_LR / MERGED).astype(np.int64)


class _Sides:
    """A fixed set of prices near the best and far from it, and the bounds that they give in addition to the best
    prices."""

    def __init__(self, scaled: Scaled, line: Line, prices_R: Weights, most_bytes: float):
        seeded = np.random.default_rng(0)
        spreads = np.repeat(_SPREADS, _PRICES)[:, None]
        prices_PR = prices_R * np.exp(spreads * seeded.standard_normal((len(spreads), len(prices_R))))
        self._more_RP = (prices_PR - prices_R).T
        best_S = line.onward(scaled.charged(prices_R))
        # The charges of all options by all prices are held twice, so prices go a few at a time.
        some = max(1, int(most_bytes / (16 * len(scaled.weights_O))))
        parts = [prices_PR[start : start + some] for start in range(0, len(prices_PR), some)]
        charged = (scaled.weights_O[:, None] + scaled.values_OR @ part_PR.T for part_PR in parts)
        onward_SP = np.concatenate([_onward(line, charged_OP) for charged_OP in charged], axis=1)
        with np.errstate(invalid="ignore"):
            self._more_SP = onward_SP - best_S[:, None] - scaled.most_R @ self._more_RP

    def near(self, slot: int, labels: Labels, distance: float) -> NDArray[np.bool_]:
        """The labels that are not ruled out by the few prices that rule out most of a sample."""
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
