"""The front of score against one cost, in the user's metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

from nas.solve import METRICS, Measured, architecture_of
from nas.table import summary
from nas.units import Limit, did_you_mean
from solvers.joint import paired
from solvers.pareto import front


@dataclass(frozen=True)
class Point:
    """One architecture of the front. `cost` is a whole model's, in seconds, bytes or parameters."""

    score: float
    cost: float
    of_parent: float
    architecture: str
    summary: str


def front_of(known: Measured, cost: str, budget: Sequence[Limit], points: int) -> tuple[Point, ...]:
    """From the cheapest architecture to the best. Raises ValueError for a cost there is none of."""
    costs = [name for name in METRICS if name != "throughput"]
    if cost not in costs:
        raise ValueError(f"{cost!r} is not a cost; {did_you_mean(cost, costs)}")
    metric = METRICS[cost]
    fixed, whole = known.fixed.metrics(known.scenario)[metric], known.parent_totals()[metric]
    found = []
    effort = known.effort
    for solution in front(
        paired(known.problem(budget)), metric, points, time_limit_s=effort.time_limit_s, engine=effort.engine or "highs"
    ):
        total = solution.costs[metric] + fixed
        architecture = str(architecture_of(solution, known.layers))
        found.append(Point(solution.score, total, total / whole, architecture, summary(architecture)))
    return tuple(found)
