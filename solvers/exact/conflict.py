"""The outcome of an answer for the user: the chosen options, or the limits that cannot be met together. A conflict
comes with numbers: the value that each cost can reach alone, and the value that it can reach while the other limits at
fault hold. This file does not know how the program is solved, nor what it minimised.
"""

import math
import time
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from solvers.errors import Infeasible, SolverTimeoutError
from solvers.exact.minimise import minimise
from solvers.exact.program import Answer, Program
from solvers.exact.settings import Settings
from solvers.exact.shortest_path import costs_of, line_of
from solvers.problem import OPTIMAL_GAP, Constraint, Option, Problem, relative_gap


def settled(problem: Problem, answer: Answer, settings: Settings) -> tuple[Option, ...]:
    """The options an answer chose. Raises Infeasible if there is no solution, and SolverTimeoutError if none was found
    because time or memory ran out. The search for the limits at fault takes up to the time limit again.
    """
    if answer.outcome == "infeasible":
        raise conflict((problem,), settings)
    if answer.outcome != "solved":
        scarce = _time(settings) if answer.outcome == "timed out" else _memory(settings)
        raise SolverTimeoutError(f"{scarce} no solution was found, nor was it proven that there is none")
    return tuple(problem.options[i] for i in answer.chosen)


def conflict(problems: Sequence[Problem], settings: Settings) -> Infeasible:
    """The smallest set of limits that no tiling of any of the problems meets. They have the same limits, and none has a
    solution. If time or memory runs out first, all limits are named, and the message says so.
    """
    asked, deadline = Settings(memory_bytes=settings.memory_bytes), time.monotonic() + settings.time_limit_s
    every = problems[0].limits
    for size in range(1, len(every)):
        for limits in combinations(every, size):
            can_be_met = _can_be_met(problems, limits, asked, deadline)
            if can_be_met is None:
                scarce = _time(settings) if time.monotonic() >= deadline else _memory(settings)
                note = f" (the smallest set of limits at fault was not found {scarce})"
                return _explained(problems, every, {}, note)
            if not can_be_met:
                return _explained(problems, limits, _together(problems, limits, asked, deadline))
    return _explained(problems, every, _together(problems, every, asked, deadline))


def _time(settings: Settings) -> str:
    return f"in {settings.time_limit_s:g} s"


def _memory(settings: Settings) -> str:
    return f"with {settings.memory_bytes / 1e9:g} GB of memory"


def _can_be_met(
    problems: Sequence[Problem], limits: Sequence[Constraint], asked: Settings, deadline: float
) -> bool | None:
    """Whether one of the problems can meet them all; None where time or memory ran out first."""
    if len(limits) == 1:
        return limits[0].holds(_alone(problems, limits[0]))
    outcomes = set()
    for problem in problems:
        nothing = np.zeros(len(problem.options))
        outcomes.add(minimise(Program.of(problem, nothing, limits), asked.until(deadline)).outcome)
    if "solved" in outcomes:
        return True
    return False if outcomes == {"infeasible"} else None


def _alone(problems: Sequence[Problem], limit: Constraint) -> float:
    """The least its cost can be with no limit at all (the most, for a minimum)."""
    least = []
    for problem in problems:
        values = limit.sign * costs_of(problem, limit.cost)
        least.append(math.fsum(values[list(line_of(problem).least(values))]))
    return limit.sign * min(least)


def _together(
    problems: Sequence[Problem], limits: Sequence[Constraint], asked: Settings, deadline: float
) -> dict[str, float]:
    """The least each cost can be while the other limits hold, by limit; left out where time or memory ran out."""
    reached = {}
    for limit in limits:
        if len(limits) == 1:
            break
        others = [other for other in limits if other != limit]
        found = [_least(problem, limit, others, asked.until(deadline)) for problem in problems]
        least = [value for value in found if value is not None]
        if least and len(least) == len(found) and math.isfinite(min(least)):
            reached[limit.name] = limit.sign * min(least)
    return reached


def _least(problem: Problem, limit: Constraint, others: Sequence[Constraint], asked: Settings) -> float | None:
    """The least of its cost, in the direction of its sign, while others hold: infinite where they cannot; None where
    time or memory ran out."""
    values = limit.sign * costs_of(problem, limit.cost)
    answer = minimise(Program.of(problem, values, others), asked)
    if answer.outcome == "infeasible":
        return math.inf
    least = math.fsum(values[list(answer.chosen)])
    # If either ran out, an answer is a found value and may not be the least.
    return least if answer.outcome == "solved" and relative_gap(least, answer.bound) <= OPTIMAL_GAP else None


def _explained(
    problems: Sequence[Problem], limits: Sequence[Constraint], together: dict[str, float], note: str = ""
) -> Infeasible:
    least = {limit.name: _alone(problems, limit) for limit in limits}
    told = []
    for limit in limits:
        kind, reach = ("minimum", "most") if limit.minimum else ("maximum", "least")
        text = f"{limit.cost} has {kind} {limit.value:.10g} and is {least[limit.name]:.10g} at the {reach}"
        if limit.name in together:
            text += f" ({together[limit.name]:.10g} while the other limits named here hold)"
        told.append(text)
    head = "a limit that cannot be met" if len(limits) == 1 else "limits that cannot be met together"
    return Infeasible(f"{head}: {'; '.join(told)}{note}", tuple(least), least, together, is_smallest=not note)
