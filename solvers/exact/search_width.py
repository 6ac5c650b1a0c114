"""The distance from the bound within which tilings can be searched, given the number of partial ones. They are counted,
not made.

Partial tilings are counted by how far they are from the best there is, in bins: one pass over the options, whatever the
count. If there are too many up to the wanted distance, the distance is reduced. Legend of shape suffixes: O options, S
slots and the end, B bins.
"""

import numpy as np

from solvers.exact.shortest_path import Line, Weights

_BINS = 256
_FEW_BINS = 32
_ZOOMS = 20


def reach_bytes(line: Line) -> int:
    """The bytes that `reach` takes, whatever the number of options."""
    return 4 * 8 * _BINS * (line.slots + 1)


def reach(line: Line, charged_O: Weights, wanted: float, labels: float) -> float:
    """The wanted distance, or the largest one with at most this number of partial tilings; 0 if distance 0 already has
    more."""
    distance = wanted
    for _ in range(_ZOOMS):
        count_SB = _counts(line, charged_O, distance)
        count_SB += _counts(line.mirrored, charged_O, distance)[::-1]
        bins = int(np.searchsorted(count_SB.min(0), labels, side="right"))
        if bins >= _FEW_BINS:
            return distance * (bins / _BINS)
        distance *= (bins + 1) / _BINS
    return 0.0


def over_best(line: Line, charged_O: Weights) -> Weights:
    """The excess of each option over the best path from its first slot on; infinite for options that are in no
    tiling."""
    onward_S = line.onward(charged_O)
    leads_O = np.isfinite(onward_S[line.ends])
    over_O = np.full(len(charged_O), np.inf)
    ends, firsts = line.ends[leads_O], line.firsts[leads_O]
    over_O[leads_O] = charged_O[leads_O] + onward_S[ends] - onward_S[firsts]
    return over_O


def _counts(line: Line, charged_O: Weights, distance: float) -> Weights:
    """The number of partial tilings up to each slot and share of the distance, or a little more, [S, B]."""
    over_O = over_best(line, charged_O)
    near = np.flatnonzero(over_O < distance)
    near = near[np.argsort(line.firsts[near], kind="stable")]
    bins = np.clip(over_O[near] * (_BINS / distance), 0, _BINS - 1).astype(np.intp)
    count_SB = np.zeros((line.slots + 1, _BINS))
    count_SB[0, 0] = 1
    for first, end, place in zip(line.firsts[near].tolist(), line.ends[near].tolist(), bins.tolist(), strict=True):
        count_SB[end, place:] += count_SB[first, : _BINS - place]
    return count_SB.cumsum(1, out=count_SB).cumsum(0, out=count_SB)
