"""The blocks that a dependency matrix offers to join: runs of FFNs and windows of blocks, on matrices made by hand."""

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.job.fusion_candidates import LayerRun, ffn_runs, low_regions, windows


def matrix_of(layers: int, *low: Sequence[int]) -> list[list[float]]:
    """0.9 between any two layers, but 0.1 within each group of `low`."""
    together = {pair for group in low for pair in combinations(group, 2)}
    return [[0.0 if j <= i else 0.1 if (i, j) in together else 0.9 for j in range(layers)] for i in range(layers)]


def places(runs: Sequence[LayerRun]) -> list[tuple[int, int]]:
    return [(run.first, run.length) for run in runs]


def test_runs_lie_inside_a_region_without_its_last() -> None:
    matrix = matrix_of(6, [1, 2, 3, 4])
    assert low_regions(matrix, 0.4) == (range(1, 5),)
    assert places(ffn_runs(matrix, 3, 0.4)) == [(1, 2), (1, 3), (2, 2)]
    assert places(ffn_runs(matrix, 2, 0.4)) == [(1, 2), (2, 2)]
    assert places(ffn_runs(matrix, 9, 0.4, leave_last=False)) == [(1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (3, 2)]
    assert [str(run) for run in ffn_runs(matrix, 3, 0.4)] == ["1-2", "1-3", "2-3"]


def test_a_region_of_two_leaves_nothing_to_fuse() -> None:
    matrix = matrix_of(4, [2, 3])
    assert places(ffn_runs(matrix, 3, 1 / 6)) == []
    assert places(ffn_runs(matrix, 3, 1 / 6, leave_last=False)) == [(2, 2)]


def test_regions_may_overlap() -> None:
    matrix = matrix_of(6, [0, 1, 2], [2, 3, 4])
    assert low_regions(matrix, 0.4) == (range(0, 3), range(2, 5))
    assert places(ffn_runs(matrix, 4, 0.4)) == [(0, 2), (2, 2)]


def test_a_fused_ffn_is_no_wider_than_allowed() -> None:
    matrix = matrix_of(6, [1, 2, 3, 4])
    widths = [64, 64, 32, 16, 64, 64]
    assert places(ffn_runs(matrix, 3, 0.4, widths=widths, widest=112)) == [(1, 2), (1, 3), (2, 2)]
    assert places(ffn_runs(matrix, 3, 0.4, widths=widths, widest=111)) == [(1, 2), (2, 2)]
    assert places(ffn_runs(matrix, 3, 0.4, widths=widths, widest=48)) == [(2, 2)]


def test_a_run_knows_its_largest_dependency_and_their_sum() -> None:
    matrix = [[0.0, 0.1, 0.3], [0.0, 0.0, 0.2], [0.0, 0.0, 0.0]]
    (whole,) = [run for run in ffn_runs(matrix, 3, 1.0, leave_last=False) if run.length == 3]
    assert (whole.most, whole.layers) == (0.3, range(0, 3))
    assert whole.total == pytest.approx(0.6)


def test_ties_are_low_together() -> None:
    assert low_regions(matrix_of(5), 0.1) == (range(0, 5),)


@pytest.mark.parametrize("layers", [0, 1])
def test_too_few_layers_offer_nothing(layers: int) -> None:
    assert ffn_runs(matrix_of(layers)) == ()
    assert windows(matrix_of(layers)) == ()


@given(
    share=st.floats(0.05, 1),
    layers=st.integers(2, 7),
    values=st.lists(st.integers(0, 6), min_size=21, max_size=21),
)
def test_regions_are_all_the_longest_stretches_of_low_pairs(share: float, layers: int, values: list[int]) -> None:
    given = iter(values)
    matrix = [[0.0 if j <= i else next(given) / 6 for j in range(layers)] for i in range(layers)]
    pairs = sorted(matrix[i][j] for i, j in combinations(range(layers), 2))
    bar = pairs[next(n for n in range(1, len(pairs) + 1) if n >= share * len(pairs) - 1e-9) - 1]
    low = [
        range(first, stop)
        for first in range(layers)
        for stop in range(first + 2, layers + 1)
        if all(matrix[i][j] <= bar for i, j in combinations(range(first, stop), 2))
    ]
    longest = [r for r in low if not any(r != o and o.start <= r.start and r.stop <= o.stop for o in low)]
    assert list(low_regions(matrix, share)) == longest
    offered = {range(r.start, r.stop) for r in low if r.stop - r.start <= 3}
    assert {run.layers for run in ffn_runs(matrix, 3, share, leave_last=False)} == offered


def test_windows_go_by_the_largest_then_the_sum_and_never_overlap() -> None:
    """Windows at 0, 4 and 5 share their largest. 5 has the least sum; 4 is next, but overlaps it."""
    matrix = [[0.0] * 9 for _ in range(9)]
    for i in range(8):
        matrix[i][i + 1] = 0.1 if i in (5, 6) else 0.3
    for i in range(7):
        matrix[i][i + 2] = 0.3 if i in (0, 4, 5) else 0.9
    found = windows(matrix, 3)
    assert places(found) == [(5, 3), (0, 3)]
    assert [run.most for run in found] == [0.3, 0.3]
    assert [run.total for run in found] == pytest.approx([0.5, 0.9])
    assert places(windows(matrix, 3, most=1)) == [(5, 3)]
    assert windows(matrix, 10) == ()


def test_of_windows_alike_the_first_is_taken() -> None:
    assert places(windows(matrix_of(11), 4)) == [(0, 4), (4, 4)]
