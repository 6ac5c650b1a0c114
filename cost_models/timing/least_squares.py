"""Non-negative least squares: the time of each part, from wholes that hold known counts of the parts. Pure arithmetic;
this file knows no models and no clocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Whole:
    """A measured whole: its count of each part, its amount (such as seconds), and the relative standard error of
    that."""

    counts: Mapping[str, float]
    amount: float
    spread: float

    def predicted(self, parts: Mapping[str, float]) -> float:
        """The sum of its parts."""
        return sum(count * parts[name] for name, count in self.counts.items())


_LEAST_SPREAD = 1e-4
"""The smallest error that a time can have. It also keeps the weight of the control finite."""


def attribute(wholes: Sequence[Whole]) -> dict[str, float]:
    """The amount of each part, at least 0. They minimise the sum of squares of the wholes' relative errors divided by
    their spreads. If the amount of a part is negative, it is too small to measure: it is set to 0, and the others are
    fitted again. Raises ValueError if the wholes do not determine all parts.
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
        raise ValueError(f"{len(wholes)} timed wholes do not determine {', '.join(names)}; time others too")
    kept = list(range(len(names)))
    while True:
        solution = np.linalg.lstsq(scaled[:, kept], amounts * weights, rcond=None)[0] / lengths[kept]
        if not kept or solution.min() >= 0:
            break
        kept.pop(int(np.argmin(solution * lengths[kept])))
    fitted = dict(zip((names[index] for index in kept), map(float, solution), strict=True))
    return {name: fitted.get(name, 0.0) for name in names}
