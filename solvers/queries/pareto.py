"""The front: the best score for each value of one cost, from the least reachable to that of the best score.

An epsilon-constraint sweep (Haimes, 1971): the limit on the cost goes down a grid, the other limits hold. So points
that no weighing of score against cost would find (unsupported ones) are found as well. Each point is solved twice, for
the best score and then for the least cost at that score, so that no point is dominated by a tie; once where a gap is
asked for that is too large to speak of ties. Each starts from its neighbour's prices. This file does not know what the
cost is.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from solvers.exact.conflict import conflict, settled
from solvers.exact.minimise import Start, minimise
from solvers.exact.program import Answer, Program, Row
from solvers.exact.settings import DEFAULT, Settings
from solvers.exact.shortest_path import check_tiling, costs_of, scores_of
from solvers.exact.solver import solution_of
from solvers.problem import OPTIMAL_GAP, Option, Problem, Solution, relative_gap, total_costs


def front(problem: Problem, cost: str, points: int = 20, settings: Settings = DEFAULT) -> tuple[Solution, ...]:
    """At most `points` solutions, none dominated by another, by ascending `cost` and so descending score.

    The grid has `points` values of the cost, evenly spread from the least it can be to that of the best score. For each
    of them the front holds the best solution that costs no more, to the gap: all that is not dominated is there,
    whether a weighing of score and cost would find it or not, save what lies between two values and is beaten in score
    by what costs no more than the next.

    Time limit and memory are for each run of the solver; a point they cut short is "feasible", as in `mip.solve`, and
    one for which nothing is found raises SolverTimeoutError. Raises Infeasible where the problem has no solution at
    all.
    """
    return front_of_all((problem,), cost, points, settings)


def front_of_all(
    problems: Sequence[Problem],
    cost: str,
    points: int = 20,
    settings: Settings = DEFAULT,
    also: Sequence[float] = (),
) -> tuple[Solution, ...]:
    """The front of all solutions of several problems with the same limits, as of one in `front`.

    `also`: more values of the cost to solve at, beside those of the grid. Those out of reach are left out.
    """
    if points < 2:
        raise ValueError(f"a front has at least its two ends, not {points} points")
    for problem in problems:
        if problem.options and cost not in problem.options[0].costs:
            known = ", ".join(sorted(problem.options[0].costs))
            raise ValueError(f"no option has the cost {cost!r}; they have {known}")
        check_tiling(problem)
    sweeps = [_Sweep(problem, cost, settings) for problem in problems]
    cheapest = {sweep: least for sweep in sweeps if (least := sweep.cheapest()) is not None}
    if not cheapest:
        raise conflict(problems, settings)
    found = [_best([sweep.point(None) for sweep in cheapest], cost)]
    lowest = min(cheapest.values())
    grid = np.linspace(lowest, found[0].costs[cost], points)[:-1].tolist()
    for value in sorted({*grid, *(value for value in also if value >= lowest)}, reverse=True):
        # A point may lie far below its limit; the limits in between would only find it again.
        if value < found[-1].costs[cost]:
            found.append(_best([sweep.point(value) for sweep, least in cheapest.items() if least <= value], cost))
    return _undominated(found, cost)


def _best(points: Sequence[Solution], cost: str) -> Solution:
    """The best score, and of its equals the least cost. Its bound is one on all of them."""
    best, bound = min(points, key=lambda point: (point.score, point.costs[cost])), min(one.bound for one in points)
    gap = relative_gap(best.score, bound)
    return replace(best, bound=bound, gap=gap, status="optimal" if gap <= OPTIMAL_GAP else "feasible")


class _Sweep:
    """A problem solved under one limit after the other, each time from what the last time showed."""

    def __init__(self, problem: Problem, cost: str, settings: Settings):
        self._problem = problem
        self._cost = cost
        self._settings = settings
        self._program = Program.of(problem, scores_of(problem), problem.limits)
        self._costs = costs_of(problem, cost)
        self._cheapest: Answer | None = None
        self._prices: tuple[float, ...] | None = None

    def cheapest(self) -> float | None:
        """The least the cost was found to be within the limits; None where nothing is within them."""
        program = replace(self._program, weights=self._costs)
        # Whatever gap the scores may have: the grid begins here.
        self._cheapest = answer = minimise(program, replace(self._settings, gap=OPTIMAL_GAP))
        return None if answer.outcome == "infeasible" else total_costs(self._settled(answer))[self._cost]

    def point(self, most: float | None) -> Solution:
        """The best score where the cost is at most so much, and of its equals one of least cost."""
        started = time.monotonic()
        rows = self._program.rows if most is None else (*self._program.rows, Row(self._costs, most))
        known = Start(self._prices, [self._cheapest.chosen] if self._cheapest else ())
        best = minimise(replace(self._program, rows=rows), self._settings, known)
        self._settled(best)
        self._prices = best.prices if most is not None else (*best.prices, 0.0)
        if self._settings.gap <= OPTIMAL_GAP:
            cheaper = self._cheaper(best)
            if cheaper.outcome == "solved":  # If not it is out of time; what is known to be there stands.
                best = replace(best, chosen=cheaper.chosen)
        return solution_of(self._problem, self._program, best, time.monotonic() - started)

    def _cheaper(self, best: Answer) -> Answer:
        """The least cost at its score. The prices are the same, counted in cost instead of score."""
        assert self._prices is not None
        *others, of_cost = self._prices
        prices = [price / of_cost for price in (*others, 1.0)] if of_cost > 0 else None
        at_its_score = Row(self._program.weights, self._program.weight(best.chosen))
        program = replace(self._program, weights=self._costs, rows=(*self._program.rows, at_its_score))
        return minimise(program, self._settings, Start(prices, [best.chosen]))

    def _settled(self, answer: Answer) -> tuple[Option, ...]:
        return settled(self._problem, answer, self._settings)


def _undominated(solutions: list[Solution], cost: str) -> tuple[Solution, ...]:
    """By ascending cost, those with a better score than all before them."""
    kept: list[Solution] = []
    for solution in sorted(solutions, key=lambda solution: (solution.costs[cost], solution.score)):
        if not kept or solution.score < kept[-1].score:
            kept.append(solution)
    return tuple(kept)
