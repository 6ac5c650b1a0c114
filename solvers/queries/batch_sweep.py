"""The best over several batch sizes: each has costs of its own, the scores are the same.

Puzzle (arXiv 2411.19146), its search: the program is solved for each batch size, and the best answer kept. Here batch
sizes go by what they can come to at best, and those that cannot be better than an answer already found are not solved.
This file does not know what a batch is: its problems differ in their costs and limits.
"""

import time
from collections.abc import Hashable, Mapping
from typing import TypeVar

from solvers.errors import Infeasible, SolverTimeoutError
from solvers.exact import solver
from solvers.exact.conflict import conflict
from solvers.exact.lagrangian import dual
from solvers.exact.program import Program
from solvers.exact.settings import DEFAULT, Settings
from solvers.exact.shortest_path import check_tiling, scores_of
from solvers.problem import Problem, Solution

Batch = TypeVar("Batch", bound=Hashable)


def sweep(problems: Mapping[Batch, Problem], settings: Settings = DEFAULT) -> tuple[Batch, Solution]:
    """The batch size with the best solution, and that solution, its bound one on all of them.

    The first of equals wins. Time limit and memory are for each run of the solver; a run without a solution counts
    with its bound. Where no batch size has a solution, raises SolverTimeoutError if some might, which it names, else
    Infeasible with the limits at fault for the last that was tried.
    """
    if not problems:
        raise ValueError("a sweep has at least one batch size")
    started = time.monotonic()
    bounds: dict[Batch, float] = {}
    for batch, problem in problems.items():
        check_tiling(problem)
        bounds[batch] = dual(Program.of(problem, scores_of(problem), problem.limits)).bound
    best: tuple[Batch, Solution] | None = None
    infeasible: Infeasible | None = None
    unknown: dict[Batch, str] = {}
    for batch in sorted(problems, key=bounds.__getitem__):
        if best is not None and bounds[batch] >= best[1].score:
            continue
        try:
            found = solver.solve(problems[batch], settings)
        except Infeasible as error:
            infeasible = error
            bounds[batch] = float("inf")
            continue
        except SolverTimeoutError as error:
            unknown[batch] = str(error)
            continue
        bounds[batch] = max(bounds[batch], found.bound)
        if best is None or found.score < best[1].score:
            best = batch, found
    if best is None and unknown:
        named = "" if len(problems) == 1 else f"{', '.join(map(str, unknown))}: "
        raise SolverTimeoutError(named + list(unknown.values())[-1])
    if best is None:
        assert infeasible is not None
        raise infeasible
    batch, found = best
    return batch, Solution.of(
        problems[batch], found.options, min(bounds.values()), time.monotonic() - started, found.solver
    )


def best_of(problems: Mapping[str, Problem], settings: Settings = DEFAULT) -> tuple[str, Solution]:
    """The same for problems with the same limits. Infeasible has the limits at fault for all of them together."""
    if len(problems) == 1:
        ((name, problem),) = problems.items()
        return name, solver.solve(problem, settings)
    try:
        return sweep(problems, settings)
    except Infeasible as error:
        raise conflict(tuple(problems.values()), settings) from error
