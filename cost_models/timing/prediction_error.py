"""How far predictions are from what they predict: percentage errors, bias, and the order. Pure numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean


@dataclass(frozen=True)
class PredictionError:
    """`mape` is the mean absolute error and `bias` the mean error, as shares of the values; `worst` is the largest.
    `tau` is Kendall's (tau-a) between the two orders, None for fewer than two values."""

    mape: float
    bias: float
    worst: float
    tau: float | None


def prediction_error(predicted: Sequence[float], values: Sequence[float]) -> PredictionError:
    """Raises ValueError where there is none, or the lists differ in length."""
    errors = [one / value - 1 for one, value in zip(predicted, values, strict=True)]
    if not errors:
        raise ValueError("there is no prediction to compare")
    return PredictionError(
        mape=fmean(map(abs, errors)),
        bias=fmean(errors),
        worst=max(errors, key=abs),
        tau=_kendall(predicted, values) if len(errors) > 1 else None,
    )


def _kendall(one: Sequence[float], other: Sequence[float]) -> float:
    """Pairs in the same order, less those in the other, over all; ties are in neither."""
    points = list(zip(one, other, strict=True))
    orders = [(a[0] - b[0]) * (a[1] - b[1]) for a, b in combinations(points, 2)]
    return sum((order > 0) - (order < 0) for order in orders) / len(orders)
