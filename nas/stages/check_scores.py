"""Predicted scores that an answer stands on, measured; and the budget solved again, until all of an answer's are.

The solver takes what looks cheap, so predictions that are too low are chosen more often than others. Measuring those
that are chosen costs little where the options are many: most are never chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blocklib.block import Choice
from nas.job.units import Limit
from nas.solve.solve import Measured, measured, solve
from nas.stages.context import Context
from nas.stages.costs import write_options
from nas.stages.library import score_choices


@dataclass(frozen=True)
class Misses:
    """How far predicted scores were from measured ones, by choice, as a share of the measured one."""

    of: Mapping[Choice, float]
    answers: int
    """Architectures that were solved for until one stood on measured scores alone."""

    def said(self) -> str:
        """In a sentence."""
        sizes = [abs(miss) for miss in self.of.values()]
        worst = max(self.of, key=lambda choice: abs(self.of[choice]))
        return (
            f"checked {len(sizes)} predicted scores, those of {self.answers} answers: off by "
            f"{sum(sizes) / len(sizes):.1%} in the mean, at most {self.of[worst]:+.1%} ({worst})"
        )


def check_scores(context: Context, known: Measured, budget: Sequence[Limit]) -> tuple[Measured, Misses]:
    """The search with the scores of its answer to the budget measured, and the misses that this showed. Scores that
    were measured before are known. Raises BudgetNotMetError."""
    job, store = context.job, context.store
    predicted = frozenset(job.to_predict)
    misses: dict[Choice, float] = {}
    answers = 0
    while True:
        answers += 1
        chosen = map(known.choice, solve(known, budget).options)
        asked = [choice for choice in chosen if choice in predicted]
        before = store.scores(list(map(job.score_key, asked)))
        if not score_choices(context, asked):
            return known, Misses(misses, answers)
        after = store.scores(list(map(job.measured_score_key, asked)))
        for choice in asked:
            guess, true = before[job.score_key(choice)].kl, after[job.measured_score_key(choice)].kl
            misses[choice] = guess / true - 1 if true else 0.0
        write_options(job, store)
        known = measured(store, known.search, known.metric)
