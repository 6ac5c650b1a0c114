"""All tilings within the limits that weigh little more than the bound: partial ones from both ends, that meet.

Meeting in the middle (Horowitz and Sahni, 1974), with bounds. So near to the bound a tiling uses its limits up almost
whole: a label from one end is held only against those from the other that leave next to nothing of any limit. They are
found by cells of a grid over the sums.

Legend of shape suffixes: L labels of one end, K of the other, R rows, N pairs.
"""

from collections.abc import Iterator

import numpy as np

from solvers.labels import MERGED, Labelling, Labels
from solvers.line import Indices, Weights
from solvers.program import Program
from solvers.scaled import Scaled

_AXES = 3
"""Sums that make the grid, at most."""
_BLOCK = 50_000
"""Labels of one end that are held against the other's at a time."""
_PAIRS = 200_000


class MergedError(Exception):
    """A tiling was within the limits but for rounding, where labels of the same sums were taken for one."""


def meet(
    program: Program, scaled: Scaled, prices_R: Weights, distance: float, further: float, merging: bool
) -> Iterator[Indices | None]:
    """Tilings within the rows, each lighter than those before; the last is the lightest within `distance`, if any is.

    Distances are from the bound. Tilings as far as `further` are looked for as well, but not all are seen. Now and then
    None, for the caller to look at the clock. Raises CrowdedError where labels are too many, MergedError where merging
    might have lost one.
    """
    ahead = Labelling(scaled, scaled.line, prices_R, distance, merging)
    back = Labelling(scaled, scaled.line.mirrored, prices_R, distance, merging)
    while ahead.slot + back.slot < scaled.line.slots:
        (ahead if ahead.coming <= back.coming else back).step()
        yield None
    charged_O = scaled.charged(prices_R)
    through_S = scaled.line.up_to(charged_O) + scaled.line.onward(charged_O)
    bound = float(through_S[0] - prices_R @ scaled.most_R)
    for slot in range(ahead.slot, scaled.line.slots + 1):
        mirrored = scaled.line.slots - slot
        ones, others = ahead.at(slot), back.at(mirrored)
        if ones is None or others is None or not len(others.over_L):
            continue
        grid = _Grid(scaled, prices_R, others, float(through_S[slot] - through_S[0]), further)
        for start in range(0, len(ones.over_L), _BLOCK):
            block = ones.only(np.arange(start, min(start + _BLOCK, len(ones.over_L))))
            is_open = True
            while is_open:
                is_open = False
                for found in grid.pairs(block, further):
                    yield None
                    for one, other in found:
                        chosen = [*ahead.chosen(slot, start + one)[::-1], *back.chosen(mirrored, other)]
                        tiling = np.array(chosen, dtype=np.intp)
                        if program.holds(tiling):
                            lighter = program.weight(tiling) / scaled.scale - bound
                            is_open, further = lighter < further, min(further, lighter)
                            yield tiling
                            break
                        if merging:
                            raise MergedError
                    if is_open:
                        # What is left of the block is held against less.
                        break


class _Grid:
    """Labels of one end in cells over the sums that tell most of them apart, those nearest the bound first in each.

    A cell is as wide as what a tiling may leave of a limit: labels that go with one from the other end are in two cells
    along each sum.
    """

    def __init__(self, scaled: Scaled, prices_R: Weights, labels: Labels, passed: float, further: float):
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
        self._order = np.argsort(key_K)
        self._key_K = key_K[self._order]
        self._labels = labels.only(self._order)

    def pairs(self, others: Labels, further: float) -> Iterator[Iterator[tuple[int, int]]]:
        """Which of the others make a tiling lighter than `further` from the bound with which of these, some at a time,
        lightest first, to rounding."""
        room_L = further + self._passed - others.over_L
        most_LR = self._most_R - others.sums_LR
        mine_N, cell_N = self._cells(room_L, most_LR)
        first_N = np.searchsorted(self._key_K, cell_N)
        count_N = np.searchsorted(self._key_K, cell_N + self._share(room_L[mine_N]), side="right") - first_N
        ends_N, start = np.cumsum(count_N), 0
        while start < len(count_N):
            done = int(ends_N[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends_N, done + _PAIRS, side="right")))
            some = slice(start, stop)
            mine = np.repeat(mine_N[some], count_N[some])
            its = np.arange(done, done + len(mine)) + np.repeat((first_N - ends_N + count_N)[some], count_N[some])
            yield self._lightest_first(*self._within(room_L, most_LR, mine, its))
            start = stop

    def _lightest_first(self, mine: Indices, its: Indices, room: Weights) -> Iterator[tuple[int, int]]:
        for place in np.argsort(-room, kind="stable").tolist():
            yield int(mine[place]), int(self._order[its[place]])

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
        """Less than a half, so that keys of different cells are told apart."""
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
