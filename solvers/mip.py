"""The exact solver: the best tiling within the limits, and how far it is proven to be the best.

Puzzle (arXiv 2411.19146), its search: mixed-integer programming over the block library, here with options that span
several slots, and its diversity constraint. This file knows what to ask; how it is answered is `minimise.py`'s, and
which limits are at fault where there is no answer is `conflict.py`'s.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from solvers.conflict import settled
from solvers.line import check_tiling, scores_of
from solvers.minimise import Start, minimise
from solvers.problem import OPTIMAL_GAP, Option, Problem, Solution
from solvers.program import Answer, Program, Progress, Row
from solvers.pulp_model import Engine


def solve(
    problem: Problem,
    *,
    gap: float = OPTIMAL_GAP,
    time_limit_s: float | None = None,
    diverse_from: Sequence[Solution] = (),
    min_different_slots: int = 0,
    engine: Engine = "highs",
    progress: Progress | None = None,
) -> Solution:
    """The solution of least score, to a relative `gap`, unlike each earlier solution in at least so many slots.

    `progress` hears of the best score and the proven bound at every step. Where the time runs out first, the best one
    found, "feasible" with the gap proven by then. Raises Infeasible where the limits cannot be met together (to say
    which takes up to the time limit again), and TimeoutError where the time ran out with no solution.
    """
    started = time.monotonic()
    _check(problem, min_different_slots)
    program = Program.of(problem, scores_of(problem), problem.limits)
    earlier = diverse_from if min_different_slots else ()
    asked = _asked(program, problem, earlier, min_different_slots)
    answer = minimise(asked, gap, time_limit_s, engine=engine, progress=progress)
    if answer.outcome != "solved":
        settled(_unlike(problem, earlier, min_different_slots), answer, time_limit_s)
    return solution_of(problem, program, answer, time.monotonic() - started)


def pool(
    problem: Problem,
    count: int,
    *,
    min_different_slots: int = 1,
    gap: float = OPTIMAL_GAP,
    time_limit_s: float | None = None,
    engine: Engine = "highs",
) -> tuple[Solution, ...]:
    """Up to `count` solutions, each the best to a relative `gap` of those unlike all before it in at least so many
    slots; fewer where there are no more. With 1 slot they are the best there are.

    The time limit is for each of them. Raises as `solve` does.
    """
    _check(problem, min_different_slots)
    if min_different_slots < 1:
        raise ValueError("min_different_slots is 0; solutions of a pool differ in 1 slot at least")
    program = Program.of(problem, scores_of(problem), problem.limits)
    found: list[Solution] = []
    start = Start()
    while len(found) < count:
        started = time.monotonic()
        asked = _asked(program, problem, found, min_different_slots)
        answer = minimise(asked, gap, time_limit_s, engine=engine, start=start)
        if answer.outcome == "infeasible" and found:
            break
        if answer.outcome != "solved":
            settled(_unlike(problem, found, min_different_slots), answer, time_limit_s)
        found.append(solution_of(problem, program, answer, time.monotonic() - started))
        start = Start((*answer.prices, 0.0), (*start.tilings, answer.chosen))
    return tuple(found)


def solution_of(problem: Problem, program: Program, answer: Answer, seconds: float) -> Solution:
    """A solved answer to a program of the problem, in which other rows may stand, in the problem's own terms."""
    bound = max(answer.bound, float(program.line.up_to(program.weights)[-1]))
    return Solution.of(problem, [problem.options[i] for i in answer.chosen], bound, seconds, "mip")


def _check(problem: Problem, min_different_slots: int) -> None:
    if not 0 <= min_different_slots <= problem.slots:
        raise ValueError(f"min_different_slots is {min_different_slots}; it is between 0 and {problem.slots} slots")
    check_tiling(problem)


def _asked(program: Program, problem: Problem, earlier: Sequence[Solution], slots: int) -> Program:
    """The problem's program, where the slots filled unlike each earlier solution are at least so many."""
    keys = [option.key for option in problem.options]
    spans = program.line.ends - program.line.firsts
    rows = []
    for solution in earlier:
        same = {option.key for option in solution.options}
        unlike = np.array([key not in same for key in keys])
        rows.append(Row(-np.where(unlike, spans, 0).astype(np.float64), -float(slots)))
    return replace(program, rows=(*program.rows, *rows))


def _unlike(problem: Problem, earlier: Sequence[Solution], slots: int) -> Problem:
    """The same as a problem, to tell which limits are at fault."""
    costs: dict[str, set[tuple[int, int, str]]] = {
        f"slots unlike solution {number}": {option.key for option in solution.options}
        for number, solution in enumerate(earlier, start=1)
    }

    def counted(option: Option) -> Option:
        unlike = {name: 0.0 if option.key in keys else float(option.span) for name, keys in costs.items()}
        return replace(option, costs={**option.costs, **unlike})

    minimums = {**problem.minimums, **dict.fromkeys(costs, float(slots))}
    return replace(problem, options=tuple(map(counted, problem.options)), minimums=minimums)
