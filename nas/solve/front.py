"""The front of score against one metric, in the user's units. More throughput is less latency: one front, told in
either."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from cost_models.metrics import METRICS
from nas.errors import BudgetError, BudgetNotMetError
from nas.job.units import Limit, did_you_mean
from nas.solve.effort import USUAL, Effort
from nas.solve.solve import Measured, not_met
from nas.solve.summary import summary
from solvers.errors import Infeasible
from solvers.queries.pareto import front_of_all
from solvers.refine.joint import parted


@dataclass(frozen=True)
class Point:
    """One architecture of the front. `cost` is a whole model's, in seconds, bytes or parameters, or its tokens per
    second; "feasible" where a score better by up to `gap` is not ruled out, since the job asks for no more or the time
    limit came first."""

    score: float
    cost: float
    of_parent: float
    architecture: str
    summary: str
    status: str
    gap: float


def front_of(
    known: Measured,
    cost: str,
    budget: Sequence[Limit],
    points: int,
    effort: Effort = USUAL,
    also: Sequence[float] = (),
) -> tuple[Point, ...]:
    """From the cheapest architecture, or the one of most throughput, to the best. `also`: more values of the cost of
    a whole model to solve at. An architecture whose parts took no time that the clock could tell has no throughput, and
    no point. Raises BudgetError for a metric there is not, BudgetNotMetError."""
    if cost not in METRICS:
        raise BudgetError(f"{cost!r} is not a cost; {did_you_mean(cost, METRICS)}")
    metric, whole = METRICS[cost], known.whole(cost)
    try:
        questions = tuple(known.questions(budget).values())
        summed = metric.summed.column
        fixed = known.fixed.metrics(known.scenario)[summed]
        values = [metric.to_summed(value, known.scenario, known.parent.parameters) - fixed for value in also]
        solutions = front_of_all(questions, summed, points, effort.over(known.settings), values)
    except Infeasible as error:
        raise BudgetNotMetError(not_met(known, budget, error)) from error
    found = []
    for solution in solutions:
        total = known.totals(solution)[metric.column]
        if not isfinite(total):
            continue
        own = known.of(solution.options)
        architecture = str(own.architecture(parted(solution.options, own.problem(budget))))
        found.append(
            Point(
                solution.score, total, total / whole, architecture, summary(architecture), solution.status, solution.gap
            )
        )
    return tuple(found)
