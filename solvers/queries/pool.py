"""Several solutions of one problem: the best, then each the best of those unlike all before it.

Puzzle (arXiv 2411.19146), its search, has this as a diversity constraint. It counts the slots that are filled
otherwise; the parts of a joint option are compared one by one. Each question starts from what the last one
showed. This file does not know what solutions are wanted for.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from solvers.errors import SolverTimeoutError
from solvers.exact.conflict import settled
from solvers.exact.minimise import Start, minimise
from solvers.exact.program import Program, Row
from solvers.exact.settings import DEFAULT, Settings
from solvers.exact.shortest_path import check_tiling, scores_of
from solvers.exact.solver import solution_of
from solvers.problem import Option, Problem, Solution
from solvers.refine.joint import filled


def pool(
    problem: Problem, settings: Settings = DEFAULT, *, apart: int = 1, total_s: float = math.inf
) -> Iterator[Solution]:
    """Each the best, to the gap of the settings, of those that fill at least `apart` slots unlike each before it, and
    found when it is asked for; with 1 they are the best there are. The bound of each is one on all that are so unlike.

    Ends where there are no more. Time limit and memory are for each of them, `total_s` for all together. Raises
    Infeasible where there is none at all, SolverTimeoutError where the time ran out before the next was found, and
    ValueError where they are not between 1 slot and all slots apart.
    """
    if not 1 <= apart <= problem.slots:
        raise ValueError(f"solutions of a pool are between 1 and {problem.slots} slots apart, not {apart}")
    check_tiling(problem)
    program = Program.of(problem, scores_of(problem), problem.limits)
    asked, start = program, Start()
    over = time.monotonic() + total_s
    while True:
        started = time.monotonic()
        if started >= over:
            raise SolverTimeoutError(f"the {total_s:g} s for all solutions are over")
        allowed = settings.until(over)
        answer = minimise(asked, allowed, start)
        if answer.outcome == "infeasible" and asked is not program:
            return
        if answer.outcome != "solved":
            # To find out which limits are at fault takes time again, and counts.
            settled(problem, answer, allowed.until(over))
        found = solution_of(problem, program, answer, time.monotonic() - started)
        yield found
        asked = replace(asked, rows=(*asked.rows, _unlike(problem, found, apart)))
        start = Start((*answer.prices, 0.0), (*start.tilings, answer.chosen))


def _unlike(problem: Problem, earlier: Solution, apart: int) -> Row:
    """At least so many slots filled otherwise than in an earlier solution."""
    there = filled(earlier.options)
    return Row(-np.array([_otherwise(option, there) for option in problem.options]), -float(apart))


def _otherwise(option: Option, there: Mapping[int, str]) -> float:
    """How many of its slots it fills otherwise."""
    return float(sum(name != there[slot] for slot, name in filled((option,)).items()))
