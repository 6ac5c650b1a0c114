"""The exact solver: the best tiling within the limits, and how far it is proven to be the best.

Puzzle (arXiv 2411.19146), its search: mixed-integer programming over the block library, here with options that span
several slots, and its diversity constraint. This file knows what to ask; how it is answered is `minimise.py`'s, and
which limits are at fault where there is no answer is `conflict.py`'s.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from solvers.conflict import settled
from solvers.line import check_tiling, score_bound, scores_of
from solvers.minimise import minimise
from solvers.problem import OPTIMAL_GAP, Option, Problem, Solution
from solvers.program import Program


def solve(
    problem: Problem,
    *,
    gap: float = OPTIMAL_GAP,
    time_limit_s: float | None = None,
    diverse_from: Sequence[Solution] = (),
    min_different_slots: int = 0,
) -> Solution:
    """The solution of least score, to a relative `gap`, unlike each earlier solution in at least so many slots.

    Where the time runs out first, the best one found, "feasible" with the gap proven by then. Raises Infeasible where
    the limits cannot be met together (to say which takes up to the time limit again), and TimeoutError where the time
    ran out with no solution.
    """
    started = time.monotonic()
    if not 0 <= min_different_slots <= problem.slots:
        raise ValueError(f"min_different_slots is {min_different_slots}; it is between 0 and {problem.slots} slots")
    check_tiling(problem)
    asked = _unlike(problem, diverse_from, min_different_slots) if min_different_slots else problem
    answer = minimise(Program.of(asked, scores_of(asked), asked.limits), gap, time_limit_s)
    settled(asked, answer, time_limit_s)
    chosen = [problem.options[i] for i in answer.chosen]
    bound = max(answer.bound, score_bound(problem))
    return Solution.of(problem, chosen, bound, time.monotonic() - started, "mip")


def _unlike(problem: Problem, earlier: Sequence[Solution], slots: int) -> Problem:
    """The same problem, where an option also costs the slots it fills otherwise than each earlier solution."""
    costs: dict[str, set[tuple[int, int, str]]] = {
        f"slots unlike solution {number}": {option.key for option in solution.options}
        for number, solution in enumerate(earlier, start=1)
    }

    def counted(option: Option) -> Option:
        unlike = {name: 0.0 if option.key in keys else float(option.span) for name, keys in costs.items()}
        return replace(option, costs={**option.costs, **unlike})

    minimums = {**problem.minimums, **dict.fromkeys(costs, float(slots))}
    return replace(problem, options=tuple(map(counted, problem.options)), minimums=minimums)
