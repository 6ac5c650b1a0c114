"""Predictions beside measurements, for every trial that was built, and how well they rank.

Knows rows of trials only. Predicted latency is a sum over the options; the predicted score is a sum of scores of single
replacements (Puzzle, arXiv 2411.19146, section 4.1). That sum is an approximation; this section shows its error.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cost_models.metrics import LATENCY
from db import models
from nas.job.stored import parent_totals, request_of
from nas.job.units import format_quantity
from nas.scoring.rank_correlation import spearman


@dataclass(frozen=True)
class Pair:
    """One prediction and its measurement of one trial: latency as a share of the parent's, or a score."""

    trial: int
    predicted: float
    measured: float

    @property
    def ratio(self) -> str:
        return f"{self.measured / self.predicted:.3f}" if self.predicted else "-"


@dataclass(frozen=True)
class AgreementLine:
    """One trial. A dash means that the value was not measured."""

    trial: int
    latency: tuple[str, str, str]
    share: tuple[str, str]
    score: tuple[str, str, str]


@dataclass(frozen=True)
class Agreement:
    """`latency` and `score` are the pairs that the lines show; scores are those in the search's own metric. A rank
    correlation is None for fewer than `FEWEST` pairs."""

    lines: tuple[AgreementLine, ...]
    latency: tuple[Pair, ...]
    score: tuple[Pair, ...]
    latency_spearman: float | None
    score_spearman: float | None


def agreement(search: models.SearchRow, trials: Sequence[models.TrialRow]) -> Agreement | None:
    """None if no trial was built. Scores are compared with the values before healing, because they do not predict
    healing."""
    built = [trial for trial in trials if trial.latency_s is not None or trial.kl_before_heal is not None]
    if not built:
        return None
    metric = request_of(search).metric
    latency = tuple(pair for trial in built if (pair := _latency(search, trial)))
    alike = [trial for trial in built if trial.metric == metric]
    score = tuple(pair for trial in alike if (pair := _score(trial)))
    return Agreement(tuple(_line(search, trial) for trial in built), latency, score, ranked(latency), ranked(score))


def ranked(pairs: Sequence[Pair]) -> float | None:
    """Rank correlation of prediction and measurement."""
    return spearman([pair.predicted for pair in pairs], [pair.measured for pair in pairs])


def _latency(search: models.SearchRow, trial: models.TrialRow) -> Pair | None:
    """Latencies as shares of the parent's: the predicted one relative to the parent's predicted time, the measured one
    relative to the time that the parent took beside the child. Seconds from different days are not compared."""
    if trial.latency_ratio is None:
        return None
    return Pair(trial.id, trial.predicted_latency_s / _parent_latency_s(search), trial.latency_ratio)


def _parent_latency_s(search: models.SearchRow) -> float:
    return parent_totals(search)[LATENCY.column]


def _score(trial: models.TrialRow) -> Pair | None:
    """The scores in the metric that the trial was chosen by. They do not predict training through rounding either."""
    if trial.round_tokens:
        return None
    if trial.metric == "kl":
        return None if trial.kl_before_heal is None else Pair(trial.id, trial.score, trial.kl_before_heal)
    parent = trial.parent_lm_loss
    if trial.lm_loss_before_heal is None or parent is None:
        return None
    return Pair(trial.id, trial.score, trial.lm_loss_before_heal - parent)


def _line(search: models.SearchRow, trial: models.TrialRow) -> AgreementLine:
    share = "-"
    if trial.latency_ratio is not None:
        spread = "" if trial.latency_spread is None else f" ± {trial.latency_ratio * trial.latency_spread:.1%}"
        share = f"{trial.latency_ratio:.1%}{spread}"
    return AgreementLine(
        trial.id,
        _times(trial, _latency(search, trial)),
        (f"{trial.predicted_latency_s / _parent_latency_s(search):.1%}", share),
        _numbers(trial.score, _score(trial)),
    )


def _times(trial: models.TrialRow, pair: Pair | None) -> tuple[str, str, str]:
    predicted = format_quantity("latency", trial.predicted_latency_s)
    measured = "-" if trial.latency_s is None else format_quantity("latency", trial.latency_s)
    return predicted, measured, "-" if pair is None else pair.ratio


def _numbers(predicted: float, pair: Pair | None) -> tuple[str, str, str]:
    shown = f"{predicted:.4f}"
    return (shown, "-", "-") if pair is None else (shown, f"{pair.measured:.4f}", pair.ratio)
