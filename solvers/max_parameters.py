"""Baseline: the most parameters the limits leave room for, or the most of any other cost: Puzzle's max-params ablation
(arXiv 2411.19146).

It takes a bigger model for a better one and ignores the scores. It is exact: the exact solver minimises the negative
total.
"""

import time
from dataclasses import replace

from solvers import mip
from solvers.line import check_tiling, score_bound
from solvers.memory import MEMORY_BYTES
from solvers.problem import OPTIMAL_GAP, Problem, Solution
from solvers.pulp_model import Engine


def max_parameters(
    problem: Problem,
    cost: str = "parameters",
    *,
    gap: float = OPTIMAL_GAP,
    time_limit_s: float | None = None,
    engine: Engine = "highs",
    memory_bytes: float = MEMORY_BYTES,
) -> Solution:
    """The solution with the largest total of `cost`, to a relative gap.

    Raises Infeasible where the limits cannot be met together, SolverTimeoutError where nothing was found in the time,
    and ValueError where the options have no such cost.
    """
    started = time.monotonic()
    check_tiling(problem)
    names = problem.options[0].costs
    if cost not in names:
        raise ValueError(f"no option has the cost {cost!r}; they have {', '.join(names)}")
    turned = replace(problem, options=tuple(replace(each, score=-each.costs[cost]) for each in problem.options))
    found = mip.solve(turned, gap=gap, time_limit_s=time_limit_s, engine=engine, memory_bytes=memory_bytes)
    own = {option.key: option for option in problem.options}
    chosen = [own[option.key] for option in found.options]
    return Solution.of(problem, chosen, score_bound(problem), time.monotonic() - started, "max_parameters")
