"""The front: the best score for each value of one cost, from the least reachable to that of the best score.

An epsilon-constraint sweep (Haimes, 1971): the limit on the cost goes down a grid, the other limits hold. Each point is
solved twice, for the best score and then for the least cost at that score, so that no point is dominated by a tie. This
file does not know what the cost is.
"""

from dataclasses import replace

import numpy as np

from solvers import mip
from solvers.conflict import settled
from solvers.line import costs_of, scores_of
from solvers.minimise import minimise
from solvers.problem import OPTIMAL_GAP, Problem, Solution, total_costs
from solvers.program import Program, Row


def front(
    problem: Problem, cost: str, points: int = 20, *, gap: float = OPTIMAL_GAP, time_limit_s: float | None = None
) -> tuple[Solution, ...]:
    """At most `points` solutions, none dominated by another, by ascending `cost` and so descending score.

    The time limit is for each run of the solver; a point it cuts short is "feasible", as in `mip.solve`, and one for
    which it finds nothing raises TimeoutError. Raises Infeasible where the problem has no solution at all.
    """
    if points < 2:
        raise ValueError(f"a front has at least its two ends, not {points} points")
    if problem.options and cost not in problem.options[0].costs:
        raise ValueError(f"no option has the cost {cost!r}; they have {', '.join(sorted(problem.options[0].costs))}")
    found = [_point(problem, cost, gap, time_limit_s)]
    most = found[0].costs[cost]
    least = _least(problem, cost, gap, time_limit_s)
    for value in np.linspace(least, most, points)[-2::-1].tolist():
        # A point may lie far below its limit; the limits in between would only find it again.
        if value < found[-1].costs[cost]:
            limited = replace(problem, maximums={**problem.maximums, cost: value})
            found.append(_point(limited, cost, gap, time_limit_s))
    return _undominated(found, cost)


def _point(problem: Problem, cost: str, gap: float, time_limit_s: float | None) -> Solution:
    """The best score within the limits, and of its equals one of least cost."""
    best = mip.solve(problem, gap=gap, time_limit_s=time_limit_s)
    program = Program.of(problem, costs_of(problem, cost), problem.limits)
    at_its_score = replace(program, rows=(*program.rows, Row(scores_of(problem), best.score)))
    answer = minimise(at_its_score, gap, time_limit_s)
    if answer.outcome != "solved":  # Out of time; what is known to be there stands.
        return best
    chosen = [problem.options[i] for i in answer.chosen]
    return Solution.of(problem, chosen, best.bound, best.seconds, best.solver)


def _least(problem: Problem, cost: str, gap: float, time_limit_s: float | None) -> float:
    """The least the cost was found to be within the limits."""
    answer = minimise(Program.of(problem, costs_of(problem, cost), problem.limits), gap, time_limit_s)
    return total_costs(settled(problem, answer, time_limit_s))[cost]


def _undominated(solutions: list[Solution], cost: str) -> tuple[Solution, ...]:
    """By ascending cost, those with a better score than all before them."""
    kept: list[Solution] = []
    for solution in sorted(solutions, key=lambda solution: (solution.costs[cost], solution.score)):
        if not kept or solution.score < kept[-1].score:
            kept.append(solution)
    return tuple(kept)
