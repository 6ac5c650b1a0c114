"""The exact solver: the best tiling within the limits, and how far it is proven to be the best.

Puzzle (arXiv 2411.19146), its search: mixed-integer programming over the block library, here with options that span
several slots. This file sets up the question; `minimise.py` answers it, and `conflict.py` finds the limits at fault if
there is no answer.
"""

import time

from solvers.exact.conflict import settled
from solvers.exact.minimise import minimise
from solvers.exact.program import Answer, Program
from solvers.exact.settings import DEFAULT, Settings
from solvers.exact.shortest_path import check_tiling, scores_of
from solvers.problem import Problem, Solution


def solve(problem: Problem, settings: Settings = DEFAULT) -> Solution:
    """The solution of least score, to the gap of the settings.

    If the time runs out first, it is the best one found, "feasible" with the gap proven by then. The search uses at
    most `settings.memory_bytes` beside the problem. If it needs more, a MIP solver takes over, and is stopped if it
    uses as much.

    Raises Infeasible where the limits cannot be met together (to say which takes up to the time limit again), and
    SolverTimeoutError where the time, or the memory, ran out with no solution.
    """
    started = time.monotonic()
    check_tiling(problem)
    program = Program.of(problem, scores_of(problem), problem.limits)
    answer = minimise(program, settings)
    if answer.outcome != "solved":
        settled(problem, answer, settings)
    return solution_of(problem, program, answer, time.monotonic() - started)


def solution_of(problem: Problem, program: Program, answer: Answer, seconds: float) -> Solution:
    """A solved answer to a program of the problem, in the problem's own terms. The program may have other rows."""
    bound = max(answer.bound, float(program.line.up_to(program.weights)[-1]))
    return Solution.of(problem, [problem.options[i] for i in answer.chosen], bound, seconds, "mip")
