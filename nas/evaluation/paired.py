"""How far a child is from its parent on one metric of one task, with standard errors. Arithmetic alone: no lm_eval.

Both models answer the same samples. Most of what makes a sample easy or hard is common to both, so the error of the
difference comes from the differences sample by sample; it is far less than the two errors together say.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_CLOSE = 1e-6
_LARGEST_EXPONENT = math.log(sys.float_info.max)
"""The exponential function of a larger number is no float."""


@dataclass(frozen=True)
class ModelScore:
    """One model on one metric: the value and its standard error as lm_eval gives them (None: it gives none), and what
    it noted of each sample: a number, or a log-likelihood and a length."""

    value: float
    error: float | None
    samples: Sequence[Any] = ()


def paired_error(parent: ModelScore, child: ModelScore) -> float | None:
    """The standard error of child less parent from the samples; None where they do not say how the value is made.

    A value is made of the mean of the samples, or of their sum over the sum of their lengths: the mean itself, bits
    (-mean / ln 2), or a perplexity (exp(-mean)). Its error is the jackknife's: one sample after the other is left out
    of both models, and the n changes that result give sqrt((n - 1) / n * sum((change - their mean) ** 2)). That is
    equation 11.5 of Efron and Tibshirani, An Introduction to the Bootstrap (1993). For a mean it is the usual standard
    error of the mean of the differences.
    """
    own, theirs = (_parts(score.samples) for score in (parent, child))
    if len(own) != len(theirs) or len(own) < 2:
        return None
    for value_of in (_same, _bits, _perplexity):
        if _is_made_by(value_of, own, parent.value) and _is_made_by(value_of, theirs, child.value):
            changes = [
                value_of(other) - value_of(one)
                for one, other in zip(_means_without_one(own), _means_without_one(theirs), strict=True)
            ]
            return _jackknife(changes)
    return None


def difference_error(parent: ModelScore, child: ModelScore) -> tuple[float | None, bool]:
    """The standard error of child less parent, and whether it is paired; else it is the root of the sum of squares,
    None where one of the two errors is unknown."""
    paired = paired_error(parent, child)
    if paired is not None:
        return paired, True
    if parent.error is None or child.error is None:
        return None, False
    return math.hypot(parent.error, child.error), False


def _parts(samples: Sequence[Any]) -> list[tuple[float, float]]:
    """Each sample's sum and length, which is one for a plain number; empty where one is neither."""
    found = [(sample, 1.0) if _is_number(sample) else sample for sample in samples]
    return found if all(map(_is_part, found)) else []


def _is_number(sample: Any) -> bool:
    return isinstance(sample, int | float) and math.isfinite(sample)


def _is_part(sample: Any) -> bool:
    return isinstance(sample, tuple | list) and len(sample) == 2 and all(map(_is_number, sample)) and sample[1] > 0


def _same(mean: float) -> float:
    return mean


def _bits(mean: float) -> float:
    return -mean / math.log(2)


def _perplexity(mean: float) -> float:
    return math.exp(-mean) if -mean < _LARGEST_EXPONENT else math.inf


def _is_made_by(value_of: Callable[[float], float], parts: Sequence[tuple[float, float]], value: float) -> bool:
    mean = math.fsum(above for above, _ in parts) / math.fsum(below for _, below in parts)
    return math.isclose(value_of(mean), value, rel_tol=_CLOSE, abs_tol=_CLOSE)


def _means_without_one(parts: Sequence[tuple[float, float]]) -> Iterator[float]:
    """The mean without the first part, then without the second, and so on."""
    whole, length = (math.fsum(column) for column in zip(*parts, strict=True))
    for above, below in parts:
        yield (whole - above) / (length - below)


def _jackknife(left: Sequence[float]) -> float | None:
    """The standard error from the values with one sample left out each; None where one of them is infinite."""
    if not all(map(math.isfinite, left)):
        return None
    mean = math.fsum(left) / len(left)
    return math.sqrt((len(left) - 1) / len(left) * math.fsum((value - mean) ** 2 for value in left))
