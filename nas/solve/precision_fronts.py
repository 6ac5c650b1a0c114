"""Whether pruning pays beside precisions: the fronts of precisions alone, of shapes alone, and of both.

All three are exact for the scores and costs of the search; most scores of precisions are predicted, not measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cost_models.metrics import METRICS
from nas.errors import BudgetNotMetError
from nas.job.units import Limit, format_quantity
from nas.solve.effort import USUAL, Effort
from nas.solve.front import Point, front_of
from nas.solve.restricted import one_precision, restricted, uniform
from nas.solve.solve import Measured
from solvers.problem import LIMIT_TOLERANCE, OPTIMAL_GAP


@dataclass(frozen=True)
class UniformParent:
    """The parent in one precision throughout, with its predicted cost and the sum of its parts' scores."""

    precision: str
    cost: float
    score: float


@dataclass(frozen=True)
class PrecisionFronts:
    """The fronts, the cheapest point first. `both` has a point at every cost of `precisions`, so that the two compare.

    `shapes` are stored in `precision` throughout. A front is empty where nothing of its kind meets the other limits.
    """

    cost: str
    both: tuple[Point, ...]
    precisions: tuple[Point, ...]
    shapes: tuple[Point, ...]
    precision: str
    uniform: tuple[UniformParent, ...]
    offers_shapes: bool = True
    """Whether the search could choose other shapes than the parent's."""

    @property
    def pays(self) -> tuple[bool, ...]:
        """Whether `both` is lower than `precisions`, by more than the gap that either is proven to, at each point of
        `precisions`."""
        return tuple(_is_lower(self._best(point.cost), point) for point in self.precisions)

    @property
    def pays_from(self) -> float | None:
        """The largest cost of a point of `precisions` at which `both` is lower, and is lower at every cheaper point;
        of throughput, the least. None where it is not lower at the cheapest."""
        lower = [point for index, point in enumerate(self.precisions) if all(self.pays[: index + 1])]
        return lower[-1].cost if lower else None

    def _best(self, most: float) -> Point:
        """The best of both that costs no more."""
        sign = -1 if METRICS[self.cost].at_least else 1
        within = [point for point in self.both if sign * (point.cost - most) <= 2 * LIMIT_TOLERANCE * abs(most)]
        return min(within, key=lambda point: point.score)

    def said(self) -> str:
        """From which budget on pruning pays, in a sentence."""
        if not self.offers_shapes:
            return "The search chose precisions alone: its space holds no other shapes than the parent's."
        if not self.precisions:
            return "With the parent's shapes, nothing meets the other limits."
        where = "this model and machine" if METRICS[self.cost].is_measured else "this model"
        further, end = ("up", "most") if METRICS[self.cost].at_least else ("down", "least")
        cheapest, least = self.precisions[0], format_quantity(self.cost, self.precisions[0].cost)
        alone = f"{further} to {least}, the {end} that precisions alone reach"
        beyond = ""
        if self.both[0].cost != cheapest.cost:
            beyond = f"; only pruned children go further, to {format_quantity(self.cost, self.both[0].cost)}"
        if self.pays_from is not None:
            lower, start = self._best(cheapest.cost).score, format_quantity(self.cost, self.pays_from)
            return (
                f"Pruning starts to pay on {where} at {start}: from there {alone}, a pruned child has the lower "
                f"score at every budget solved for, at the last {lower:.4g} instead of {cheapest.score:.4g}{beyond}."
            )
        if any(self.pays):
            return (
                f"Pruning pays on {where} at {sum(self.pays)} of the {len(self.pays)} budgets solved for {alone}, but "
                f"not at the last{beyond}."
            )
        return f"Pruning does not pay on {where}: at no budget {alone}, has a pruned child a lower score{beyond}."


def precision_fronts(
    known: Measured, cost: str, others: Sequence[Limit], points: int, effort: Effort = USUAL
) -> PrecisionFronts:
    """The fronts of a search that chose precisions, of `points` points each. `others` are limits that hold along all of
    them. Raises BudgetError for a metric there is not, BudgetNotMetError where nothing at all meets `others`."""
    own = restricted(known, "precisions")
    bits = _front(own, cost, others, points, effort)
    both = front_of(known, cost, others, points, effort, [point.cost for point in bits])
    shapes = _front(restricted(known, "shapes"), cost, others, points, effort)
    metric = METRICS[cost]
    scores = {known.choice(option): option.score for option in known.options}
    parents = []
    for name, choices in uniform(known).items():
        whole = sum((known.costs[choice] for choice in choices), known.fixed)
        value = metric.of(whole, known.scenario, known.parent.parameters)
        if value is not None:
            parents.append(UniformParent(name, value, sum(scores[choice] for choice in choices)))
    return PrecisionFronts(
        cost, both, bits, shapes, one_precision(known), tuple(parents), len(own.options) < len(known.options)
    )


def _front(known: Measured, cost: str, others: Sequence[Limit], points: int, effort: Effort) -> tuple[Point, ...]:
    try:
        return front_of(known, cost, others, points, effort)
    except BudgetNotMetError:
        return ()


def _is_lower(one: Point, other: Point) -> bool:
    gap = max(one.gap, other.gap, OPTIMAL_GAP)
    return other.score - one.score > gap * max(abs(one.score), abs(other.score))
