"""The exact solver: the best tiling within the limits, and how far it is proven to be the best.

Puzzle (arXiv 2411.19146), its search: mixed-integer programming over the block library, here with options that span
several slots. This file knows what to ask; how it is answered is `minimise.py`'s, and which limits are at fault where
there is no answer is `conflict.py`'s.
"""

import time

from solvers.conflict import settled
from solvers.line import check_tiling, scores_of
from solvers.memory import MEMORY_BYTES
from solvers.minimise import minimise
from solvers.problem import OPTIMAL_GAP, Problem, Solution
from solvers.program import Answer, Program, Progress
from solvers.pulp_model import Engine


def solve(
    problem: Problem,
    *,
    gap: float = OPTIMAL_GAP,
    time_limit_s: float | None = None,
    engine: Engine = "highs",
    progress: Progress | None = None,
    memory_bytes: float = MEMORY_BYTES,
) -> Solution:
    """The solution of least score, to a relative `gap`.

    `progress` hears of the best score and the proven bound at every step. Where the time runs out first, the best one
    found, "feasible" with the gap proven by then. The search holds at most `memory_bytes` beside the problem: what it
    would hold more for is left to a MIP solver, and that is stopped where it comes to hold as much.

    Raises Infeasible where the limits cannot be met together (to say which takes up to the time limit again), and
    SolverTimeoutError where the time, or the memory, ran out with no solution.
    """
    started = time.monotonic()
    check_tiling(problem)
    program = Program.of(problem, scores_of(problem), problem.limits)
    answer = minimise(program, gap, time_limit_s, engine=engine, progress=progress, memory_bytes=memory_bytes)
    if answer.outcome != "solved":
        settled(problem, answer, time_limit_s, memory_bytes)
    return solution_of(problem, program, answer, time.monotonic() - started)


def solution_of(problem: Problem, program: Program, answer: Answer, seconds: float) -> Solution:
    """A solved answer to a program of the problem, in which other rows may stand, in the problem's own terms."""
    bound = max(answer.bound, float(program.line.up_to(program.weights)[-1]))
    return Solution.of(problem, [problem.options[i] for i in answer.chosen], bound, seconds, "mip")
