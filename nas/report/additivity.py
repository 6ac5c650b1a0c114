"""Sums of scores beside the real KLs of whole architectures: how far the sum can be trusted to choose.

Knows rows of trials only: those that were assembled and measured without training, by `nas compare` or by refining,
each architecture once. Scores of another metric than KL are not its prediction, and left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from db import models
from nas.report.agreement import Pair, ranked


@dataclass(frozen=True)
class ScoreAdditivity:
    """A pair an architecture. `spearman` is the rank correlation of sum and real KL, `factor` by how much the median
    real KL is more than its sum; None where there are too few, or no sum is above 0."""

    pairs: tuple[Pair, ...]
    spearman: float | None
    factor: float | None


def additivity(trials: Sequence[models.TrialRow]) -> ScoreAdditivity | None:
    """None where no whole architecture was measured."""
    found: dict[str, Pair] = {}
    for trial in trials:
        if trial.kl_whole is not None and trial.metric == "kl":
            found.setdefault(trial.architecture, Pair(trial.id, trial.score, trial.kl_whole))
    if not found:
        return None
    pairs = tuple(found.values())
    factors = [pair.measured / pair.predicted for pair in pairs if pair.predicted > 0]
    return ScoreAdditivity(pairs, ranked(pairs), median(factors) if factors else None)
