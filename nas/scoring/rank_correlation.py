"""How well one list of numbers ranks another: Spearman's rank correlation."""

from collections.abc import Sequence

import numpy as np

FEWEST = 3
"""Trials below which a rank correlation says nothing."""


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Rank correlation, ties sharing their mean rank. None where one side is all ties, or there are under `FEWEST`."""
    if len(left) < FEWEST or len(set(left)) == 1 or len(set(right)) == 1:
        return None
    return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    """How many are less, and half of those that are equal."""
    array = np.asarray(values)
    return [float((array < value).sum() + (array == value).sum() / 2) for value in array]
