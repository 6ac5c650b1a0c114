"""Several answers to one budget, from the store alone: the best, then each the best of those unlike all before it."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    """An answer as a trial, whose own gap is that to the best of all. `unlike` counts the subblocks that are not the
    first answer's; `gap` is how far it may be from the best of those unlike the answers before it."""

    trial: models.Trial
    unlike: int
    gap: float


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
    try:
        answer = pool(paired(problem), count, apart=apart, **effort.over(known.effort))
    except Infeasible as error:
        raise BudgetNotMet(not_met(known, budget, error)) from error
    best = answer.solutions[0]
    first = filled(best.options)
    found = []
    for solution in answer.solutions:
        # What is proven of all within the budget is what was proven of the first.
        solver = "mip" if solution is best else "pool"
        whole = Solution.of(problem, parted(solution.options, problem), best.bound, solution.seconds, solver)
        unlike = sum(name != first[slot] for slot, name in filled(solution.options).items())
        trial = store.add_trial(trial_row(known, whole, budget, None))
        if solution is best:
            trial = explain(store, known, budget, whole, trial)
        found.append(Alternative(trial, unlike, solution.gap))
    return Alternatives(tuple(found), answer.timed_out)
