"""Which options can be left out before a solver starts, with the best tiling still among the rest.

Two arguments, both exact: an option that breaks one limit however the other slots are filled, and an option that
another of the same slots beats in everything that counts. This file does not know what the sums stand for.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.line import Line, Weights


def keep(line: Line, weights: Weights, rows: Sequence[tuple[Weights, float]]) -> NDArray[np.intp]:
    """Indices, ascending, of the options worth looking at, to minimise `weights` with no row's sum over its limit."""
    possible = _possible(line, rows)
    columns = np.stack([weights, *(values for values, _ in rows)], axis=1)
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in np.flatnonzero(possible).tolist():
        option = line.options[index]
        groups[option.first, option.span].append(index)
    kept = [index for group in groups.values() for index in _undominated(group, columns)]
    return np.array(sorted(kept), dtype=np.intp)


def _possible(line: Line, rows: Sequence[tuple[Weights, float]]) -> NDArray[np.bool_]:
    """Whether some tiling with the option meets each row, one row at a time."""
    possible = np.isfinite(line.through(np.zeros(len(line.options))))
    for values, most in rows:
        # A shortest path sums in another order than the answer's check, so its last digits decide nothing.
        rounding = 1e-12 * line.slots * float(np.max(np.abs(values), initial=0.0))
        possible &= line.through(values) <= most + rounding
    return possible


def _undominated(group: Sequence[int], columns: Weights) -> list[int]:
    """Those of options on the same slots that no other is at most as heavy as in every column; of equals, one."""
    order = np.array(group)[np.lexsort(columns[group].T[::-1])]
    kept: list[int] = []
    for index in order:
        if not np.any(np.all(columns[kept] <= columns[index], axis=1)):
            kept.append(int(index))
    return kept
