"""Several answers to one budget, from the store alone: the best, then each the best of those unlike all before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from db import models
from db.store import Store
from nas.effort import USUAL, Effort
from nas.errors import BudgetNotMetError, UsageError
from nas.explain import explain
from nas.signals import SIGNALS
from nas.solve import Measured, not_met, proposed
from nas.units import Limit
from solvers.errors import Infeasible
from solvers.joint import filled, paired, parted
from solvers.pool import pool
from solvers.problem import Solution

MOST = 1000
"""Answers that may be asked for."""


@dataclass(frozen=True)
class Alternative:
    """An answer as a trial, whose gap is that to the best of all, and as a solution, whose gap is that to the best of
    those unlike the answers before it. `unlike` counts the subblocks that are not the first answer's."""

    trial: models.Trial
    solution: Solution
    unlike: int


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
    """Raises UsageError for more than anybody reads."""
    if count > MOST:
        raise UsageError(
            f"--count is {count}; the most is {MOST}: each answer is harder to find than the last and becomes a trial. "
            "Ask for a larger --apart to see answers that differ more, or use `nas pareto` for a front"
        )


def alternatives(
    store: Store,
    known: Measured,
    budget: Sequence[Limit],
    count: int,
    apart: int,
    effort: Effort = USUAL,
    total_s: float | None = None,
    tell: Callable[[Alternative], None] = lambda found: None,
) -> Alternatives:
    """Up to `count` architectures within the budget, `apart` subblocks from each other or more. Each becomes a trial,
    and is reported, as it is found; those found stay after Ctrl-C or `total_s` seconds.

    Raises BudgetNotMetError, UsageError for more subblocks than there are or a `count` above MOST, and, with none
    found, TimeoutError and KeyboardInterrupt.
    """
    check_count(count)
    subblocks = 2 * known.layers
    if not 1 <= apart <= subblocks:
        raise UsageError(f"--apart is {apart}; the model has {subblocks} subblocks, so it is between 1 and {subblocks}")
    answers = pool(paired(known.problem(budget)), apart=apart, total_s=total_s, **effort.over(known.effort))
    found: list[Alternative] = []
    ended: Ending = "exhausted"
    try:
        for solution in islice(answers, count):
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
    return Alternatives(tuple(found), "enough" if len(found) == count else ended)


def _kept(store: Store, known: Measured, budget: Sequence[Limit], solution: Solution, best: Solution) -> models.Trial:
    """The proof about all architectures within the budget is the one of the best."""
    problem, is_best = known.problem(budget), solution is best
    options = parted(solution.options, problem)
    whole = Solution.of(problem, options, best.bound, solution.seconds, solution.solver if is_best else "pool")
    trial = proposed(store, known, whole, budget)
    return explain(store, known, budget, whole, trial) if is_best else trial
