"""Sums of scores beside the real KLs of whole architectures: they show how well the sum predicts the KL.

Knows rows of trials only: those that were assembled and measured without training, by `nas compare` or by refining,
each architecture once. Scores of other metrics do not predict the KL and are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from db import models
from nas.report.agreement import Pair, ranked


@dataclass(frozen=True)
class ScoreAdditivity:
    """One pair for each architecture. `spearman` is the rank correlation of sum and real KL, `factor` the median of
    real KL over sum. They are None if there are too few pairs, or no sum is above 0."""

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
