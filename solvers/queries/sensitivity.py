"""The sensitivity of an answer: what a limit is worth, and which options were almost chosen.

The price of a limit is the shadow price of the linear relaxation (`shadow.py`). Prices also say of every option by how
much the bound rises where it is chosen, so the closest are asked for one by one, exactly. This file does not know
units.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from solvers.exact.minimise import minimise
from solvers.exact.program import Program
from solvers.exact.settings import Settings
from solvers.exact.shortest_path import scores_of
from solvers.exact.solver import solution_of
from solvers.problem import OPTIMAL_GAP, Option, Problem, Solution
from solvers.queries.shadow import shadow

BRIEF = Settings(gap=1e-4, time_limit_s=1.0)
"""The default settings of the search for close calls."""


@dataclass(frozen=True)
class CloseCall:
    """Another solution, that is the best with one of its options: `options` where it differs, in place of `instead_of`.
    Its score is `score`, `worse` more than that of what it is held against; less, where that is not the best."""

    options: tuple[Option, ...]
    instead_of: tuple[Option, ...]
    score: float
    worse: float


@dataclass(frozen=True)
class Sensitivity:
    """`prices`: by a limit's name, by how much the score falls at first for each unit that it alone is made looser by,
    if options could be mixed; 0 where that buys nothing. `close_calls` are from the closest on."""

    prices: Mapping[str, float]
    close_calls: tuple[CloseCall, ...]


def sensitivity(problem: Problem, solution: Solution, settings: Settings = BRIEF, close_calls: int = 5) -> Sensitivity:
    """The sensitivity of `solution`, the best of `problem` to its gap.

    `close_calls` are looked for with each of twice as many options, those that raise the bound least; what is not found
    and proven to the gap of the settings in the time, all of them together, and the memory, is left out.
    """
    deadline = time.monotonic() + settings.time_limit_s
    index_of = {option.key: index for index, option in enumerate(problem.options)}
    chosen = np.array([index_of[option.key] for option in solution.options], dtype=np.intp)
    found = shadow(Program.of(problem, scores_of(problem), problem.limits), chosen, settings.memory_bytes)
    prices = {limit.name: float(price) + 0.0 for limit, price in zip(problem.limits, found.prices_R, strict=True)}
    order = np.argsort(found.slack_O, kind="stable").tolist()
    others = [problem.options[index] for index in order if index not in chosen][: 2 * close_calls]
    # The best with one option is often the best with another, too.
    calls = {
        tuple(one.key for one in call.options): call for call in _calls(problem, solution, others, settings, deadline)
    }
    return Sensitivity(prices, tuple(sorted(calls.values(), key=lambda call: call.worse)[:close_calls]))


def _calls(
    problem: Problem, solution: Solution, others: list[Option], settings: Settings, deadline: float
) -> Iterator[CloseCall]:
    for option in others:
        if time.monotonic() >= deadline:
            return
        apart = (one for one in problem.options if one == option or not _overlap(one, option))
        held = replace(problem, options=tuple(apart))
        program = Program.of(held, scores_of(held), held.limits)
        answer = minimise(program, settings.until(deadline))
        if answer.outcome != "solved":
            continue
        best = solution_of(held, program, answer, 0.0)
        if best.gap > settings.gap:
            continue
        worse = best.score - solution.score
        is_equal = abs(worse) <= OPTIMAL_GAP * abs(solution.score)
        yield CloseCall(
            tuple(one for one in best.options if one not in solution.options),
            tuple(one for one in solution.options if one not in best.options),
            best.score,
            0.0 if is_equal else worse,
        )


def _overlap(one: Option, other: Option) -> bool:
    return one.first < other.end and other.first < one.end
