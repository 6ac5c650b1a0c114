"""How far a child is from its parent on one metric of one task, with standard errors. Arithmetic alone: no lm_eval.

Both models answer the same samples. Most of what makes a sample easy or hard is common to both, so the error of the
difference comes from the differences sample by sample; it is far less than the two errors together say.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_RATIOS: tuple[Callable[[float], float], ...] = (lambda ratio: math.exp(-ratio), lambda ratio: -ratio / math.log(2))
"""The way from a mean log-likelihood per word or byte to a perplexity, or to bits per byte."""
_CLOSE = 1e-6


@dataclass(frozen=True)
class ModelScore:
    """One model on one metric: the value and its standard error as lm_eval gives them (None: it gives none), and what
    it noted of each sample: a number, or a log-likelihood and a length."""

    value: float
    error: float | None
    samples: Sequence[Any] = ()


def paired_error(parent: ModelScore, child: ModelScore) -> float | None:
    """The standard error of child less parent from the samples; None where they do not say how the value is made."""
    if len(parent.samples) != len(child.samples) or len(parent.samples) < 2:
        return None
    if all(_is_number(sample) for sample in (*parent.samples, *child.samples)):
        if not (_is_mean(parent) and _is_mean(child)):
            return None
        return _error_of_mean([theirs - own for own, theirs in zip(parent.samples, child.samples, strict=True)])
    if all(_is_part(sample) for sample in (*parent.samples, *child.samples)):
        return _jackknife(parent, child)
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


def _is_number(sample: Any) -> bool:
    return isinstance(sample, int | float)


def _is_part(sample: Any) -> bool:
    return isinstance(sample, tuple | list) and len(sample) == 2 and all(map(_is_number, sample)) and sample[1] > 0


def _is_mean(measured: ModelScore) -> bool:
    mean = math.fsum(measured.samples) / len(measured.samples)
    return math.isclose(mean, measured.value, rel_tol=_CLOSE, abs_tol=_CLOSE)


def _error_of_mean(values: Sequence[float]) -> float:
    count = len(values)
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)


def _jackknife(parent: ModelScore, child: ModelScore) -> float | None:
    """Leave out one sample after the other, of both models at once."""
    for of_ratio in _RATIOS:
        if all(math.isclose(of_ratio(_ratio(one.samples)), one.value, rel_tol=_CLOSE) for one in (parent, child)):
            left = [
                of_ratio(theirs) - of_ratio(own)
                for own, theirs in zip(_ratios_without(parent), _ratios_without(child), strict=True)
            ]
            return _error_of_mean(left) * (len(left) - 1)
    return None


def _ratio(samples: Sequence[Any]) -> float:
    return math.fsum(part[0] for part in samples) / math.fsum(part[1] for part in samples)


def _ratios_without(measured: ModelScore) -> list[float]:
    above = math.fsum(part[0] for part in measured.samples)
    below = math.fsum(part[1] for part in measured.samples)
    return [(above - part[0]) / (below - part[1]) for part in measured.samples]
