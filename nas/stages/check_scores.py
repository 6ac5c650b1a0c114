"""Predicted scores that an answer stands on, measured; and the budget solved again, until all of an answer's are.

The solver takes what looks cheap, so predictions that are too low are chosen more often than others. Measuring those
that are chosen costs little where the options are many, since most are never chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from blocklib.block import Choice
from nas.job.units import Limit
from nas.solve.solve import Measured, measured, solve
from nas.stages.context import Context
from nas.stages.costs import write_options
from nas.stages.library import score_choices


@dataclass(frozen=True)
class Misses:
    """How far predicted scores were from those measured now, as shares of these."""

    shares: Mapping[Choice, float]
    answers: int
    """Architectures that were solved for until one stood on measured scores alone."""

    def said(self) -> str:
        """In a sentence."""
        sizes = {choice: abs(share) for choice, share in self.shares.items()}
        worst = max(sizes, key=sizes.__getitem__)
        return (
            f"checked {len(sizes)} predicted scores, those of {self.answers} answers: off by "
            f"{fmean(sizes.values()):.1%} in the mean, at most {self.shares[worst]:+.1%} ({worst})"
        )


def check_scores(context: Context, known: Measured, budget: Sequence[Limit]) -> tuple[Measured, Misses]:
    """The search with the scores of its answer to the budget measured, and the misses that this showed. Scores that
    were measured before are known. Raises BudgetNotMetError."""
    job, store = context.job, context.store
    predicted = frozenset(job.to_predict)
    shares: dict[Choice, float] = {}
    answers = 0
    while True:
        answers += 1
        chosen = map(known.choice, solve(known, budget).options)
        keys = {choice: job.measured_score_key(choice) for choice in chosen if choice in predicted}
        measured_before = store.scores(list(keys.values()))
        asked = [choice for choice, key in keys.items() if key not in measured_before]
        if not asked:
            return known, Misses(shares, answers)
        score_choices(context, asked)
        scores = store.scores([key for choice in asked for key in (job.score_key(choice), keys[choice])])
        for choice in asked:
            guess, true = scores[job.score_key(choice)].kl, scores[keys[choice]].kl
            shares[choice] = guess / true - 1 if true else 0.0
        write_options(job, store)
        known = measured(store, known.search, known.metric)
