"""Baseline: the most parameters the limits leave room for, or the most of any other cost: Puzzle's max-params ablation
(arXiv 2411.19146).

It takes a bigger model for a better one and ignores the scores. It is exact: the exact solver minimises the negative
total.
"""

import time
from dataclasses import replace

from solvers.exact import solver
from solvers.exact.settings import DEFAULT, Settings
from solvers.exact.shortest_path import check_tiling, score_bound
from solvers.problem import Problem, Solution


def max_parameters(problem: Problem, cost: str = "parameters", settings: Settings = DEFAULT) -> Solution:
    """The solution with the largest total of `cost`, to the gap of the settings.

    Raises Infeasible where the limits cannot be met together, SolverTimeoutError where nothing was found in the time,
    and ValueError where the options have no such cost.
    """
    started = time.monotonic()
    check_tiling(problem)
    names = problem.options[0].costs
    if cost not in names:
        raise ValueError(f"no option has the cost {cost!r}; they have {', '.join(names)}")
    turned = replace(problem, options=tuple(replace(each, score=-each.costs[cost]) for each in problem.options))
    found = solver.solve(turned, settings)
    own = {option.key: option for option in problem.options}
    chosen = [own[option.key] for option in found.options]
    return Solution.of(problem, chosen, score_bound(problem), time.monotonic() - started, "max_parameters")
