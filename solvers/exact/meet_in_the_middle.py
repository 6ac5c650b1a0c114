"""All tilings within the limits whose weight is near the bound, joined from partial tilings from both ends.

Meeting in the middle (Horowitz and Sahni, 1974), with bounds. A tiling near the bound uses almost all of its limits. So
a label from one end is compared only with those from the other end that leave almost nothing of any limit. A grid over
the sums finds them.

Legend of shape suffixes: L labels of one end, K of the other, R rows, N pairs.
"""

from collections.abc import Iterator

import numpy as np

from solvers.exact.labels import MERGED, Labelling, Labels
from solvers.exact.memory import MEMORY_BYTES, Held
from solvers.exact.scaled import Relaxation, Scaled
from solvers.exact.shortest_path import Indices, Weights

_AXES = 3
"""The largest number of sums in the grid."""
_BLOCK = 50_000
"""The number of labels of one end that are compared with the other's at a time."""
_PAIRS = 200_000
_GRID = 2_000_000
"""The number of labels of the other end that are sorted at a time: signals are handled in between."""
_LABELS_SHARE, _GRID_SHARE, _BLOCK_SHARE = 0.6, 0.25, 0.05
"""Shares of the memory: for labels, for the join's data on labels of the other end, and for its data on this end's."""


class MergedError(Exception):
    """A tiling breaks the limits only by rounding, and labels with equal sums were merged, so a better one may be
    lost."""


def meet(
    relaxation: Relaxation, distance: float, further: float, merging: bool, memory_bytes: float = MEMORY_BYTES
) -> Iterator[Indices | None]:
    """Yields tilings within the rows, each lighter than the one before; the last is the lightest within `distance`, if
    there is one. Distances are from the bound. Tilings up to `further` are searched too, but not completely. Now and
    then it yields None, so that the caller can check the clock. Raises CrowdedError if the labels are too many or need
    too much memory, and MergedError if merging may have lost a tiling.
    """
    scaled, prices_R = relaxation.scaled, relaxation.prices_R
    held = Held(_LABELS_SHARE * memory_bytes)
    ahead = Labelling(scaled, scaled.line, prices_R, distance, merging, held)
    back = Labelling(scaled, scaled.line.mirrored, prices_R, distance, merging, held)
    while ahead.slot + back.slot < scaled.line.slots:
        yield from (ahead if ahead.coming <= back.coming else back).step()
        yield None
    join = _Join(relaxation, ahead, back, further, merging, memory_bytes)
    for slot in range(ahead.slot, scaled.line.slots + 1):
        yield from join.at(slot)


class _Join:
    """Joins the labels of both ends to tilings, each lighter than the one before."""

    def __init__(
        self,
        relaxation: Relaxation,
        ahead: Labelling,
        back: Labelling,
        further: float,
        merging: bool,
        memory_bytes: float,
    ):
        self._program, self._scaled, self._prices_R = relaxation.program, relaxation.scaled, relaxation.prices_R
        self._ahead, self._back = ahead, back
        self._further, self._merging = further, merging
        scaled, prices_R = self._scaled, self._prices_R
        charged_O = scaled.charged(prices_R)
        self._through_S = scaled.line.up_to(charged_O) + scaled.line.onward(charged_O)
        self._bound = float(self._through_S[0] - prices_R @ scaled.most_R)
        label_bytes = Labels.bytes_of(1, len(scaled.most_R))
        self._grid = _as_many(_GRID, _GRID_SHARE * memory_bytes, label_bytes + 32)
        self._block = _as_many(_BLOCK, _BLOCK_SHARE * memory_bytes, 2 * label_bytes)

    def at(self, slot: int) -> Iterator[Indices | None]:
        """Those that meet at a slot, and None now and then."""
        ones, others = self._ahead.at(slot), self._back.at(self._scaled.line.slots - slot)
        if ones is None or others is None:
            return
        passed = float(self._through_S[slot] - self._through_S[0])
        for begin in range(0, len(others.over_L), self._grid):
            some = others.only(slice(begin, begin + self._grid))
            grid = _Grid(self._scaled, self._prices_R, some, begin, passed, self._further)
            for start in range(0, len(ones.over_L), self._block):
                yield from self._with(grid, ones.only(slice(start, start + self._block)), start, slot)

    def _with(self, grid: "_Grid", block: Labels, start: int, slot: int) -> Iterator[Indices | None]:
        """Tilings of a block of labels, the first of them at place `start`, and those of the grid."""
        is_open = True
        while is_open:
            is_open = False
            for found in grid.pairs(block, start, self._further):
                yield None
                tiling = self._first(found, slot)
                if tiling is not None:
                    lighter = self._program.weight(tiling) / self._scaled.scale - self._bound
                    is_open, self._further = lighter < self._further, min(self._further, lighter)
                    yield tiling
                if is_open:
                    # The rest of the block is compared with the smaller weight.
                    break

    def _first(self, found: Iterator[tuple[int, int]], slot: int) -> Indices | None:
        """The first pair that is within the rows."""
        for one, other in found:
            chosen = [*self._ahead.chosen(slot, one)[::-1], *self._back.chosen(self._scaled.line.slots - slot, other)]
            tiling = np.array(chosen, dtype=np.intp)
            if self._program.holds(tiling):
                return tiling
            if self._merging:
                raise MergedError
        return None


def _as_many(most: int, share_bytes: float, each_bytes: int) -> int:
    """At most this number, as far as their share of the memory allows."""
    return max(1, min(most, int(share_bytes / each_bytes)))


class _Grid:
    """Labels of one end in the cells of a grid over the sums that separate them best; in each cell those nearest the
    bound come first. A cell is as wide as the largest unused part of a limit, so the counterparts of a label lie in two
    cells along each sum. `begin` is the place of the first label.
    """

    def __init__(self, scaled: Scaled, prices_R: Weights, labels: Labels, begin: int, passed: float, further: float):
        self._prices_R = prices_R
        self._slack = scaled.rounding(prices_R)
        self._most_R = scaled.most_R + scaled.line.slots * MERGED
        self._passed = passed + self._slack + scaled.line.slots * MERGED * float(prices_R.sum())
        self._most_room = further + self._passed + self._slack
        self._low_R = labels.sums_LR.min(0)
        with np.errstate(divide="ignore"):
            self._size_R = self._most_room / prices_R + self._slack
        self._cells_R = (np.ptp(labels.sums_LR, axis=0) / self._size_R).astype(np.intp) + 1
        self._axes = [int(row) for row in np.argsort(-self._cells_R)[:_AXES] if self._cells_R[row] > 1]
        cell_K = np.zeros(len(labels.over_L))
        for row in self._axes:
            cell_K = cell_K * self._cells_R[row] + self._place(labels.sums_LR[:, row], row)
        key_K = cell_K + self._share(labels.over_L)
        order = np.argsort(key_K)
        self._key_K = key_K[order]
        self._labels = labels.only(order)
        self._places = begin + order

    def pairs(self, others: Labels, start: int, further: float) -> Iterator[Iterator[tuple[int, int]]]:
        """Pairs of one of the others (the first is at place `start`) and one of these that make a tiling within
        `further` of the bound: a few at a time, the lightest first, to rounding."""
        room_L = further + self._passed - others.over_L
        most_LR = self._most_R - others.sums_LR
        mine_N, cell_N = self._cells(room_L, most_LR)
        first_N = np.searchsorted(self._key_K, cell_N)
        count_N = np.searchsorted(self._key_K, cell_N + self._share(room_L[mine_N]), side="right") - first_N
        if count_N.max(initial=0) > _PAIRS:
            mine_N, first_N, count_N = _cut(mine_N, first_N, count_N)
        ends_N, begin = np.cumsum(count_N), 0
        while begin < len(count_N):
            done = int(ends_N[begin - 1]) if begin else 0
            stop = max(begin + 1, int(np.searchsorted(ends_N, done + _PAIRS, side="right")))
            some = slice(begin, stop)
            mine = np.repeat(mine_N[some], count_N[some])
            its = np.arange(done, done + len(mine)) + np.repeat((first_N - ends_N + count_N)[some], count_N[some])
            yield self._lightest_first(start, *self._within(room_L, most_LR, mine, its))
            begin = stop

    def _lightest_first(self, start: int, mine: Indices, its: Indices, room: Weights) -> Iterator[tuple[int, int]]:
        for place in np.argsort(-room, kind="stable").tolist():
            yield start + int(mine[place]), int(self._places[its[place]])

    def _cells(self, room_L: Weights, most_LR: Weights) -> tuple[Indices, Weights]:
        """The cells where each label's counterparts are: the label, and the cell."""
        mine = np.flatnonzero(room_L > 0)
        cell = np.zeros(len(mine))
        for row in self._axes:
            most = most_LR[mine, row]
            high = self._place(most, row)
            low = self._place(most - room_L[mine] / self._prices_R[row], row)
            two = np.flatnonzero(low < high)
            which, place = np.concatenate([np.arange(len(mine)), two]), np.concatenate([high, low[two]])
            is_in = (place >= 0) & (place < self._cells_R[row])
            which, place = which[is_in], place[is_in]
            mine, cell = mine[which], cell[which] * self._cells_R[row] + place
        return mine, cell

    def _place(self, sums: Weights, row: int) -> Weights:
        placed: Weights = np.floor((sums - self._low_R[row]) / self._size_R[row])
        return placed

    def _share(self, over: Weights) -> Weights:
        """Less than a half, so that different cells have different keys."""
        share: Weights = np.clip(over / self._most_room, 0, 1) * 0.5
        return share

    def _within(
        self, room_L: Weights, most_LR: Weights, mine: Indices, its: Indices
    ) -> tuple[Indices, Indices, Weights]:
        room = room_L[mine] - self._labels.over_L[its]
        for row, price in enumerate(self._prices_R.tolist()):
            left = most_LR[mine, row] - self._labels.sums_LR[its, row]
            room = room - price * left
            kept = (left >= 0) & (room > 0)
            mine, its, room = mine[kept], its[kept], room[kept]
        return mine, its, room


def _cut(mine_N: Indices, first_N: Indices, count_N: Indices) -> tuple[Indices, Indices, Indices]:
    """Runs of counterparts: the label, the first counterpart and their number, which is at most the size of one
    comparison."""
    pieces_N = -(-count_N // _PAIRS)
    which = np.repeat(np.arange(len(count_N)), pieces_N)
    passed = _PAIRS * (np.arange(len(which)) - np.repeat(np.cumsum(pieces_N) - pieces_N, pieces_N))
    return mine_N[which], first_N[which] + passed, np.minimum(count_N[which] - passed, _PAIRS)
