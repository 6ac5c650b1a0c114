"""Several solutions of one problem: the best, then each the best of those unlike all before it.

Puzzle (arXiv 2411.19146), its search, has this as a diversity constraint. It counts the slots that are filled
otherwise; the parts of a joint option are compared one by one. Each question starts from what the last one
showed. This file does not know what solutions are wanted for.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from solvers.errors import SolverTimeoutError
from solvers.exact.conflict import conflict, settled
from solvers.exact.minimise import Start, minimise
from solvers.exact.program import Answer, Program, Row
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
    yield from pool_of_all((problem,), settings, apart=apart, total_s=total_s)


def pool_of_all(
    problems: Sequence[Problem], settings: Settings = DEFAULT, *, apart: int = 1, total_s: float = math.inf
) -> Iterator[Solution]:
    """The pool of all solutions of several problems with the same limits, as of one in `pool`."""
    slots = problems[0].slots
    if not 1 <= apart <= slots:
        raise ValueError(f"solutions of a pool are between 1 and {slots} slots apart, not {apart}")
    for problem in problems:
        check_tiling(problem)
    left = [_Source(problem) for problem in problems]
    over, is_first = time.monotonic() + total_s, True
    while True:
        started = time.monotonic()
        if started >= over:
            raise SolverTimeoutError(f"the {total_s:g} s for all solutions are over")
        left = [source for source in left if source.has_next(settings, over)]
        if not left and is_first:
            # To find out which limits are at fault takes time again, and counts.
            raise conflict(problems, settings.until(over))
        if not left:
            return
        answers = [source.solution(time.monotonic() - started) for source in left]
        best = min(answers, key=lambda answer: answer.score)
        yield Solution.of(
            left[answers.index(best)].problem,
            best.options,
            min(one.bound for one in answers),
            best.seconds,
            best.solver,
        )
        is_first = False
        for source in left:
            source.exclude(best, apart)


class _Source:
    """One problem, its rows so far, and its best solution under them, which stays that until a row excludes it."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self._program = self._asked = Program.of(problem, scores_of(problem), problem.limits)
        self._start = Start()
        self._answer: Answer | None = None

    def has_next(self, settings: Settings, over: float) -> bool:
        """Whether there is another solution. Raises SolverTimeoutError where time or memory ran out before that is
        known."""
        if self._answer is None:
            allowed = settings.until(over)
            answer = minimise(self._asked, allowed, self._start)
            if answer.outcome == "infeasible":
                return False
            settled(self.problem, answer, allowed.until(over))
            self._answer = answer
        return True

    def solution(self, seconds: float) -> Solution:
        assert self._answer is not None
        return solution_of(self.problem, self._program, self._answer, seconds)

    def exclude(self, earlier: Solution, apart: int) -> None:
        """Ask from now on for what is unlike an earlier solution, perhaps of another problem."""
        assert self._answer is not None
        row, answer = _unlike(self.problem, earlier, apart), self._answer
        self._asked = replace(self._asked, rows=(*self._asked.rows, row))
        kept = replace(answer, prices=(*answer.prices, 0.0))
        if row.values[list(answer.chosen)].sum() <= row.most:
            self._answer = kept
        else:
            self._start, self._answer = Start(kept.prices, (*self._start.tilings, answer.chosen)), None


def _unlike(problem: Problem, earlier: Solution, apart: int) -> Row:
    """At least so many slots filled otherwise than in an earlier solution."""
    there = filled(earlier.options)
    return Row(-np.array([_otherwise(option, there) for option in problem.options]), -float(apart))


def _otherwise(option: Option, there: Mapping[int, str]) -> float:
    """How many of its slots it fills otherwise."""
    return float(sum(name != there[slot] for slot, name in filled((option,)).items()))
