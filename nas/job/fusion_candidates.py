"""Which neighbouring layers a dependency matrix offers to join: FFNs to fuse, blocks to run in parallel.

M[i][j] is how much block j depends on block i before it (`nas/scoring/block_dependency.py`); of the matrix only j > i
is read. FFN Fusion (arXiv 2503.18908), section 3 and appendix B. Knows numbers only: no model, no text. Standard
library only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

Matrix = Sequence[Sequence[float]]
"""Square, [layers][layers]: row, the block left out; column, the block measured."""

LONGEST, LOW_SHARE, WINDOW = 3, 0.5, 4
"""FFNs in a run, at most; the share of pairs that counts as low; blocks in a window."""


@dataclass(frozen=True)
class Joining:
    """Which neighbours may be joined: runs of at most `longest` FFNs whose dependency is among the lowest `share` of
    all pairs, and windows of `window` blocks."""

    longest: int = LONGEST
    share: float = LOW_SHARE
    window: int = WINDOW


@dataclass(frozen=True)
class LayerRun:
    """`length` neighbouring layers from `first` on; `most` is the largest dependency between two of them, `total` all
    of theirs summed."""

    first: int
    length: int
    most: float
    total: float

    @property
    def layers(self) -> range:
        return range(self.first, self.first + self.length)

    def __str__(self) -> str:
        return f"{self.first}-{self.first + self.length - 1}"


def low_regions(matrix: Matrix, share: float = LOW_SHARE) -> tuple[range, ...]:
    """The longest stretches of layers of which no two depend on each other more than low, first to last.

    Low is the `share`, in (0, 1], of all pairs that depend least, and whatever ties with them. The paper names no
    threshold; half is ours. Stretches may overlap; none is part of another.
    """
    layers = len(matrix)
    pairs = sorted(matrix[i][j] for i, j in _pairs(range(layers)))
    if not pairs:
        return ()
    assert 0 < share <= 1, share
    bar = pairs[ceil(share * len(pairs) - 1e-9) - 1]
    found: list[range] = []
    first = 0
    for last in range(1, layers):
        first = max([first, *(i + 1 for i in range(last) if matrix[i][last] > bar)])
        if found and found[-1].start == first:
            found.pop()
        if first < last:
            found.append(range(first, last + 1))
    return tuple(found)


def ffn_runs(
    matrix: Matrix,
    longest: int = LONGEST,
    share: float = LOW_SHARE,
    *,
    widths: Sequence[int] = (),
    widest: int | None = None,
    leave_last: bool = True,
) -> tuple[LayerRun, ...]:
    """Every run of 2 to `longest` FFNs that may be fused, in order: all that lie inside a region of low dependency.

    `leave_last`: the last FFN of each region stays as it is, since fusing it too costs most (the paper's ablation).
    `widest`: the hidden channels a fused FFN may have; `widths` are the FFNs' own, one a layer. Regions are not split
    into one run after another, as the paper does by hand: every run inside is offered, and the solver picks.
    """
    assert widest is None or len(widths) == len(matrix), "what is widest needs every FFN's width"
    found: dict[LayerRun, None] = {}
    for region in low_regions(matrix, share):
        inside = region[: len(region) - leave_last]
        for first in inside:
            for length in range(2, min(longest, inside.stop - first) + 1):
                if widest is None or sum(widths[first : first + length]) <= widest:
                    found[_run(matrix, first, length)] = None
    return tuple(sorted(found, key=lambda run: (run.first, run.length)))


def windows(matrix: Matrix, size: int = WINDOW, most: int | None = None) -> tuple[LayerRun, ...]:
    """Windows of exactly `size` blocks to run in parallel, best first, no two of which overlap; at most `most` of them.

    The next is always the one whose largest dependency is smallest, of equal ones the smaller sum, then the earlier
    (appendix B). Every block must still have its attention: true of a parent.
    """
    assert size >= 2, size
    every = [_run(matrix, first, size) for first in range(len(matrix) - size + 1)]
    picked: list[LayerRun] = []
    for run in sorted(every, key=lambda run: (run.most, run.total, run.first)):
        if all(abs(run.first - other.first) >= size for other in picked):
            picked.append(run)
    return tuple(picked[:most])


def _pairs(layers: range) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in layers for j in range(i + 1, layers.stop))


def _run(matrix: Matrix, first: int, length: int) -> LayerRun:
    between = [matrix[i][j] for i, j in _pairs(range(first, first + length))]
    return LayerRun(first, length, max(between), sum(between))
