"""Least squares with no negative part: what each part takes, from wholes that hold known counts of them.

Pure arithmetic: knows no models and no clocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Whole:
    """Something measured: how many of each part it holds, its seconds, say, and their relative standard error."""

    counts: Mapping[str, float]
    amount: float
    spread: float

    def predicted(self, parts: Mapping[str, float]) -> float:
        """The sum of its parts."""
        return sum(count * parts[name] for name, count in self.counts.items())


_LEAST_SPREAD = 1e-4
"""No time is taken to be surer than this; it also keeps the weights finite for what others are timed against."""


def attribute(wholes: Sequence[Whole]) -> dict[str, float]:
    """Amounts of each part, at least 0, so that the wholes' relative errors, over their spreads, are least in square.

    A part whose time comes out negative is too small to be told from nothing: it is set to 0, and the others are fitted
    again without it. Raises ValueError where the wholes do not tell all parts apart.
    """
    names = sorted({name for whole in wholes for name in whole.counts})
    weights = np.array([1 / (whole.amount * max(whole.spread, _LEAST_SPREAD)) for whole in wholes])
    counts = np.array([[whole.counts.get(name, 0.0) for name in names] for whole in wholes])
    amounts = np.array([whole.amount for whole in wholes])
    # Columns differ by orders of magnitude (one embedding, hundreds of layers); equal lengths keep the rank test fair.
    weighted = counts * weights[:, None]
    lengths = np.linalg.norm(weighted, axis=0)
    scaled = weighted / lengths
    if np.linalg.matrix_rank(scaled) < len(names):
        raise ValueError(f"{len(wholes)} timed wholes do not tell {', '.join(names)} apart; time others too")
    kept = list(range(len(names)))
    while True:
        solution = np.linalg.lstsq(scaled[:, kept], amounts * weights, rcond=None)[0] / lengths[kept]
        if not kept or solution.min() >= 0:
            break
        kept.pop(int(np.argmin(solution * lengths[kept])))
    fitted = dict(zip((names[index] for index in kept), map(float, solution), strict=True))
    return {name: fitted.get(name, 0.0) for name in names}
