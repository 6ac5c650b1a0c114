"""The block-dependency matrix as a heat-map: the heat of each pair of blocks, and the pairs that the child joins.

Knows rows, columns and heat on a linear scale from 0; the template gives it a colour.
"""

from dataclasses import dataclass

from blocklib.block import Architecture
from nas.job.fusion_candidates import Matrix


@dataclass(frozen=True)
class DependencyCell:
    """One pair. `heat` is 0 for no dependency and 1 for the largest one."""

    text: str
    exact: str
    heat: float
    is_joined: bool


@dataclass(frozen=True)
class DependencyMap:
    """Cells by the block left out, then by block; None where a block is not after the one left out."""

    rows: tuple[tuple[DependencyCell | None, ...], ...]
    most: str


def dependency_map(matrix: Matrix | None, child: Architecture | None = None) -> DependencyMap | None:
    """The map of a matrix, [layers][layers]; None if there is no matrix, or no pair in it.

    A pair is joined where `child` fuses the two layers' FFNs, or runs the two blocks in parallel.
    """
    if matrix is None or len(matrix) < 2:
        return None
    layers = range(len(matrix))
    most = max(max(row) for row in matrix)
    run_of = _runs(child) if child else list(layers)

    def cell(i: int, j: int) -> DependencyCell:
        value = matrix[i][j]
        exact = f"block {j} without block {i}: {value!r}"
        return DependencyCell(f"{value:.2f}", exact, value / most if most > 0 else 0.0, run_of[i] == run_of[j])

    return DependencyMap(tuple(tuple(cell(i, j) if j > i else None for j in layers) for i in layers), f"{most:.2f}")


def _runs(child: Architecture) -> list[int]:
    """For each layer, the number of the block, or the blocks in parallel, that spans it."""
    return [index for index, block in enumerate(child.blocks) for _ in range(block.layers)]
