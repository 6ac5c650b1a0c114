"""Baseline: a random architecture within the limits, as in Puzzle's random-from-library ablation.

The draw is a random objective put to the exact solver, so that it meets limits which rejection sampling would hardly
ever meet. Scores play no part in it.
"""

import time
from dataclasses import replace

import numpy as np

from solvers.exact.conflict import settled
from solvers.exact.minimise import minimise
from solvers.exact.program import Answer, Program
from solvers.exact.settings import DEFAULT, Settings
from solvers.exact.shortest_path import Weights, check_tiling, costs_of, score_bound
from solvers.problem import Constraint, Problem, Solution, total_costs

_GAP = 1e-3
"""An answer this near to the best of a random objective is as random as the best."""


def random_architecture(
    problem: Problem, seed: int, use_at_least: float = 0.97, settings: Settings = DEFAULT
) -> Solution:
    """A random solution that uses at least this share of the first maximum, or as much of it as is found possible.

    Every option draws a weight from a normal distribution with its span as variance, and the tiling of least weight
    within the limits is taken. So the weight of every tiling, of few long options or of many short ones, has the same
    distribution. It is not a uniform draw: a tiling comes the more often the fewer others share options with it, and
    one that no weights make the best, inside the convex hull of the others, never comes.

    The settings are for each run of the solver, but not their gap. Raises Infeasible where the limits cannot be met
    together, SolverTimeoutError where nothing was found in the time.
    """
    if not 0 <= use_at_least <= 1:
        raise ValueError(f"use_at_least is {use_at_least}; it is a share of the first maximum, between 0 and 1")
    started = time.monotonic()
    check_tiling(problem)
    spans = np.array([option.span for option in problem.options])
    weights = np.random.default_rng(seed).normal(scale=np.sqrt(spans))

    def best(objective: Weights, *more: Constraint) -> Answer:
        program = Program.of(problem, objective, (*problem.limits, *more))
        return minimise(program, replace(settings, gap=_GAP))

    if not problem.maximums:
        answer = best(weights)
    else:
        maximum = problem.limits[0]
        answer = best(weights, Constraint(maximum.cost, use_at_least * maximum.value, minimum=True))
        if answer.outcome != "solved":
            # The most of it that a tiling within the limits was found to have.
            most = settled(problem, best(-costs_of(problem, maximum.cost)), settings)
            answer = best(weights, Constraint(maximum.cost, total_costs(most)[maximum.cost], minimum=True))
    chosen = settled(problem, answer, settings)
    return Solution.of(problem, chosen, score_bound(problem), time.monotonic() - started, "random")
