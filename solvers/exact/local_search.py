"""Local search: improve a tiling by exchanging one or two of its options for others over the same slots. It repeats the
best exchange within the limits. A tiling that breaks the limits is repaired first. It proves nothing. Legend of shape
suffixes: O options, R rows, E exchanges.
"""

import numpy as np
from numpy.typing import NDArray

from solvers.exact.program import Program
from solvers.exact.shortest_path import Indices, Weights

_ROUNDS = 200
_MOST_PAIRED = 1200
"""The most exchanges that are combined in pairs: all pairs are in memory at once."""


def improved(program: Program, values_OR: Weights, most_R: Weights, chosen: Indices) -> Indices | None:
    """The tiling that one or two exchanges cannot improve; None if it cannot be repaired.

    `values_OR` and `most_R` are the program's rows, in any scale.
    """
    here = chosen.copy()
    for _ in range(_ROUNDS):
        other_E, place_E = program.line.steps.exchanges(here)
        gain_E = program.weights[other_E] - program.weights[here[place_E]]
        more_ER = values_OR[other_E] - values_OR[here[place_E]]
        room_R = most_R - values_OR[here].sum(0)
        is_over = bool(np.any(room_R < 0))
        taken = _repair(gain_E, more_ER, room_R) if is_over else _best(gain_E, more_ER, room_R, place_E)
        if taken is None:
            return None if is_over else here
        here[place_E[taken]] = other_E[taken]
    return here if np.all(values_OR[here].sum(0) <= most_R) else None


def _repair(gain_E: Weights, more_ER: Weights, room_R: Weights) -> Indices | None:
    """The exchange that brings the tiling within the limits at the least weight, or else one that brings it nearer."""
    over = float(np.maximum(-room_R, 0).sum())
    nearer_E = over - np.maximum(more_ER - room_R, 0).sum(1)
    helps_E = nearer_E > 1e-12 * over
    if not np.any(helps_E):
        return None
    mends_E = nearer_E >= over
    worth_E = gain_E if np.any(mends_E) else gain_E / np.where(helps_E, nearer_E, 1.0)
    worth_E = np.where(mends_E if np.any(mends_E) else helps_E, worth_E, np.inf)
    return np.array([np.argmin(worth_E)])


def _best(gain_E: Weights, more_ER: Weights, room_R: Weights, place_E: NDArray[np.intp]) -> Indices | None:
    """The one or two exchanges within the limits that lighten the tiling most."""
    fits_E = np.all(more_ER <= room_R, axis=1) & (gain_E < 0)
    least, taken = 0.0, None
    if np.any(fits_E):
        single = int(np.argmin(np.where(fits_E, gain_E, np.inf)))
        least, taken = float(gain_E[single]), np.array([single])
    if len(gain_E) <= _MOST_PAIRED:
        lighter = np.triu(gain_E[:, None] + gain_E[None, :] < least, k=1)
        ones, others = np.nonzero(lighter & (place_E[:, None] != place_E[None, :]))
        fits = np.ones(len(ones), dtype=np.bool_)
        for more_E, room in zip(more_ER.T, room_R, strict=True):  # A row at a time: there may be many of either.
            fits &= more_E[ones] + more_E[others] <= room
        if np.any(fits):
            ones, others = ones[fits], others[fits]
            pair = int(np.argmin(gain_E[ones] + gain_E[others]))
            taken = np.array([ones[pair], others[pair]])
    return taken
