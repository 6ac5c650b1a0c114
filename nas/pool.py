"""Several answers to one budget, from the store alone: the best, then each the best of those unlike all before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from db import models
from db.store import Store
from nas.effort import USUAL, Effort
from nas.explain import explain
from nas.solve import BudgetNotMet, Measured, not_met, trial_row
from nas.units import Limit
from solvers.joint import filled, paired, parted
from solvers.pool import pool
from solvers.problem import Infeasible, Solution


@dataclass(frozen=True)
class Alternative:
    """An answer as a trial, whose gap is that to the best of all, and as a solution, whose gap is that to the best of
    those unlike the answers before it. `unlike` counts the subblocks that are not the first answer's."""

    trial: models.Trial
    solution: Solution
    unlike: int


@dataclass(frozen=True)
class Alternatives:
    """As they were found, the first the best. Fewer than asked for: there are no more so far apart, or the time ran out
    first."""

    found: tuple[Alternative, ...]
    timed_out: bool


def alternatives(
    store: Store, known: Measured, budget: Sequence[Limit], count: int, apart: int, effort: Effort = USUAL
) -> Alternatives:
    """Up to `count` architectures within the budget, `apart` subblocks from each other or more. Each becomes a trial.

    Raises BudgetNotMet, and ValueError for more subblocks than there are.
    """
    subblocks = 2 * known.layers
    if not 1 <= apart <= subblocks:
        raise ValueError(f"--apart is {apart}; the model has {subblocks} subblocks, so it is between 1 and {subblocks}")
    problem = known.problem(budget)
    answers = pool(paired(problem), apart=apart, **effort.over(known.effort))
    found: list[Alternative] = []
    try:
        for solution in islice(answers, count):
            best = found[0].solution if found else solution
            # As each comes: those found stay, whatever comes of the next.
            trial = _kept(store, known, budget, solution, best)
            first, other = filled(best.options), filled(solution.options)
            found.append(Alternative(trial, solution, sum(name != first[slot] for slot, name in other.items())))
    except Infeasible as error:
        raise BudgetNotMet(not_met(known, budget, error)) from error
    except TimeoutError:
        if not found:
            raise
        return Alternatives(tuple(found), timed_out=True)
    return Alternatives(tuple(found), timed_out=False)


def _kept(store: Store, known: Measured, budget: Sequence[Limit], solution: Solution, best: Solution) -> models.Trial:
    """What is proven of all within the budget is what was proven of the best."""
    problem, is_best = known.problem(budget), solution is best
    options = parted(solution.options, problem)
    whole = Solution.of(problem, options, best.bound, solution.seconds, solution.solver if is_best else "pool")
    trial = store.add_trial(trial_row(known, whole, budget, None))
    return explain(store, known, budget, whole, trial) if is_best else trial
