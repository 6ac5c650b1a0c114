"""Several answers to one budget, from the store alone: the best, then each the best of those unlike all before it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from db import models
from db.store import Store
from nas.errors import BudgetNotMetError, UsageError
from nas.job.units import Limit
from nas.solve.effort import USUAL, Effort
from nas.solve.explain import explain
from nas.solve.solve import Measured, not_met, proposed
from nas.terminal.signals import SIGNALS
from solvers.errors import Infeasible
from solvers.problem import Solution
from solvers.queries.pool import pool_of_all
from solvers.refine.joint import filled

MOST = 1000
"""Answers that may be asked for."""


@dataclass(frozen=True)
class Alternative:
    """An answer as a trial, whose gap is that to the best of all, and as a solution, whose gap is that to the best of
    those unlike the answers before it. `unlike` counts the subblocks that are not the first answer's."""

    trial: models.TrialRow
    solution: Solution
    unlike: int


@dataclass(frozen=True)
class Wanted:
    """Up to `count` answers, any two of which differ in at least `apart` subblocks, within `total_s` seconds."""

    count: int
    apart: int = 1
    total_s: float = math.inf


Ending = Literal["enough", "exhausted", "time", "interrupted"]


@dataclass(frozen=True)
class Alternatives:
    """As they were found, the first the best, and why there are no more: as many as asked for were found, there are no
    others so far apart, the time ran out, or somebody stopped it."""

    found: tuple[Alternative, ...]
    ended: Ending

    @property
    def why_no_more(self) -> str:
        return {
            "enough": "as many as asked for",
            "exhausted": "there are no others so far apart",
            "time": "no other was found in time",
            "interrupted": "interrupted; the ones found are kept",
        }[self.ended]


def check_count(count: int) -> None:
    """Raises UsageError if more answers are asked for than `MOST`."""
    if count > MOST:
        raise UsageError(
            f"--count is {count}; the most is {MOST}: each answer takes longer than the last, and becomes a trial. "
            "Ask for a larger --apart to see answers that differ more, or use `nas pareto` for a front"
        )


def alternatives(
    store: Store,
    known: Measured,
    budget: Sequence[Limit],
    wanted: Wanted,
    effort: Effort = USUAL,
    tell: Callable[[Alternative], None] = lambda found: None,
) -> Alternatives:
    """Architectures within the budget, as many as are wanted and so far from each other. Each becomes a trial, and is
    reported, as it is found; those found stay after Ctrl-C, and when the time is over.

    Raises BudgetNotMetError, UsageError for more subblocks than there are or more answers than MOST, and, with none
    found, TimeoutError and KeyboardInterrupt.
    """
    check_count(wanted.count)
    subblocks, apart = 2 * known.layers, wanted.apart
    if not 1 <= apart <= subblocks:
        raise UsageError(f"--apart is {apart}; the model has {subblocks} subblocks, so it is between 1 and {subblocks}")
    questions = tuple(known.questions(budget).values())
    answers = pool_of_all(questions, effort.over(known.settings), apart=apart, total_s=wanted.total_s)
    found: list[Alternative] = []
    ended: Ending = "exhausted"
    try:
        for solution in islice(answers, wanted.count):
            best = found[0].solution if found else solution
            # As each comes: those found stay, whatever comes of the next.
            trial = _kept(store, known, budget, solution, best)
            first, other = filled(best.options), filled(solution.options)
            found.append(Alternative(trial, solution, sum(name != first[slot] for slot, name in other.items())))
            tell(found[-1])
    except Infeasible as error:
        raise BudgetNotMetError(not_met(known, budget, error)) from error
    except TimeoutError:
        if not found:
            raise
        ended = "time"
    except KeyboardInterrupt:
        if not found:
            raise
        SIGNALS.answer()
        ended = "interrupted"
    return Alternatives(tuple(found), "enough" if len(found) == wanted.count else ended)


def _kept(
    store: Store, known: Measured, budget: Sequence[Limit], solution: Solution, best: Solution
) -> models.TrialRow:
    """The proof about all architectures within the budget is the one of the best."""
    is_best = solution is best
    solver = solution.solver if is_best else "pool"
    whole = known.answer(budget, replace(solution, bound=best.bound, solver=solver))
    trial = proposed(store, known, whole, budget)
    return explain(store, known, budget, whole, trial) if is_best else trial
