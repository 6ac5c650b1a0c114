"""The study of a parent's learning rate: which rate to try next, and which trial is stopped, by Optuna.

The study is made anew from the trials each time it is asked, and its sampler is seeded by their number. So a tune that
was killed goes on as if it had not been. Knows numbers only, no model and no row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from db.tuning import TuneState
from nas.job.learning_rate import DEFAULT_RATE

CHECKS = 3
"""How often a trial reports before its end, after equal numbers of tokens."""
_DIGITS = 3
"""A rate has so many, so that it is the same when it is typed into a job."""
_RANDOM = 4
"""Trials before the sampler learns from them."""
_UNPRUNED = 3
"""Trials that must have trained to the end before any is stopped."""

_NAME = "learning_rate"

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Rates:
    """The rates to choose from, evenly in their logarithm, and the first to try."""

    least: float = 1e-5
    greatest: float = 3e-2
    first: float = DEFAULT_RATE


USUAL = Rates()


@dataclass(frozen=True)
class TriedRate:
    """A learning rate, and how training at it went. The objective is the mean over subblocks of the held-out loss after
    training divided by that before: 1 means that training was useless.

    `points` are pairs of tokens and objective on the way. `objective` of a pruned trial is its last point; None where a
    loss was not finite. `seconds` are those of its training.
    """

    learning_rate: float
    objective: float | None
    state: TuneState
    points: tuple[tuple[float, float], ...]
    seconds: float

    @property
    def said(self) -> str:
        """How it went, in words."""
        if self.objective is None:
            return "stopped, as a loss was not finite"
        reached = f"{self.objective:.4f} of the loss before training"
        return f"stopped after {self.points[-1][0]:,.0f} tokens, at {reached}" if self.state == "pruned" else reached


def next_rate(tried: Sequence[TriedRate], rates: Rates = USUAL) -> float:
    """The rate to try after these: the first one, then as a tree-structured Parzen estimator proposes."""
    if not tried:
        return rates.first
    # One seed would draw the same first number each time.
    seed = int(np.random.SeedSequence([0, len(tried)]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM)
    rate = _study(tried, rates, sampler).ask().suggest_float(_NAME, rates.least, rates.greatest, log=True)
    return min(max(float(f"{rate:.{_DIGITS}g}"), rates.least), rates.greatest)


def is_hopeless(tried: Sequence[TriedRate], points: Sequence[tuple[float, float]], rates: Rates = USUAL) -> bool:
    """Whether a trial that has reported `points` is worse than the median of those that trained to the end was
    there."""
    trial = _study(tried, rates).ask()
    for step, (_, objective) in enumerate(points, 1):
        trial.report(objective, step)
    return trial.should_prune()


def _study(
    tried: Sequence[TriedRate], rates: Rates, sampler: optuna.samplers.BaseSampler | None = None
) -> optuna.Study:
    study = optuna.create_study(sampler=sampler, pruner=optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED))
    for one in tried:
        study.add_trial(_trial(one, rates))
    return study


def _trial(tried: TriedRate, rates: Rates) -> FrozenTrial:
    reported = {step: objective for step, (_, objective) in enumerate(tried.points, 1)}
    if tried.objective is None:
        reported[len(reported) + 1] = math.inf
    return create_trial(
        state=TrialState.COMPLETE if tried.state == "complete" else TrialState.PRUNED,
        value=tried.objective if tried.state == "complete" else None,
        params={_NAME: tried.learning_rate},
        distributions={_NAME: FloatDistribution(rates.least, rates.greatest, log=True)},
        intermediate_values=reported,
    )
