"""The price of a limit, and the options that were almost chosen, against exhaustive search."""

import math
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import assume, given
from test_solvers import few, library, meets, problems, score, tilings

from solvers.exact import solver
from solvers.problem import Option, Problem, Solution, verify
from solvers.queries.pool import pool
from solvers.queries.sensitivity import BRIEF, sensitivity


def solved_with(problem: Problem, option: Option) -> float | None:
    """The least score of what holds the option."""
    found = (some for some in tilings(problem) if option in some and meets(some, problem.limits))
    return min(map(score, found), default=None)


@few
@given(problems(max_slots=4))
def test_close_calls_are_the_best_there_is_with_another_option(problem: Problem) -> None:
    assume(any(meets(some, problem.limits) for some in tilings(problem)))
    solution = solver.solve(problem)
    found = sensitivity(problem, solution, replace(BRIEF, time_limit_s=60.0), close_calls=len(problem.options))
    others = [option for option in problem.options if option not in solution.options]
    least = {option.key: best for option in others if (best := solved_with(problem, option)) is not None}
    for option in others:
        with_it = [call.score for call in found.close_calls if option in call.options]
        assert min(with_it, default=math.inf) == pytest.approx(least.get(option.key, math.inf), rel=2e-4, abs=1e-9)
    assert [call.worse for call in found.close_calls] == sorted(call.worse for call in found.close_calls)
    for call in found.close_calls:
        rest = [option for option in solution.options if option not in call.instead_of]
        other = sorted([*rest, *call.options], key=lambda option: option.first)
        verify(problem, Solution.of(problem, other, solution.bound, 0.0, "mip"))
        assert call.score == score(tuple(other))


def test_a_price_is_what_a_looser_limit_buys() -> None:
    """On a large problem the optimum is nearly as smooth as its relaxation: half a per cent more of a limit buys what
    its price says, to a tenth."""
    problem = library(layers=60, names=12, seed=3)
    solution = solver.solve(problem)
    prices = sensitivity(problem, solution, close_calls=0).prices
    for name, maximum in problem.maximums.items():
        looser = replace(problem, maximums={**problem.maximums, name: 1.005 * maximum})
        bought = solution.score - solver.solve(looser).score
        assert bought == pytest.approx(0.005 * maximum * prices[name], rel=0.1, abs=0.001 * solution.score)
    assert max(prices.values()) > 0


def test_a_limit_that_does_not_bind_is_worth_nothing() -> None:
    problem = library(layers=6, names=4, seed=0, budget=2.0)
    found = sensitivity(problem, solver.solve(problem))
    assert found.prices == {"latency": 0.0, "memory": 0.0}
    assert 0 < len(found.close_calls) <= 5


def test_a_minimum_has_a_price_too() -> None:
    problem = library(layers=20, names=6, seed=1, budget=0.4)
    least = replace(problem, maximums={}, minimums={"latency": problem.maximums["latency"]})
    turned = tuple(replace(option, score=-option.score) for option in least.options)
    found = sensitivity(replace(least, options=turned), solver.solve(replace(least, options=turned)), close_calls=0)
    assert found.prices.keys() == {"minimum latency"}
    assert found.prices["minimum latency"] > 0


def test_no_time_no_close_calls() -> None:
    problem = library(layers=6, names=4, seed=0)
    assert sensitivity(problem, solver.solve(problem), replace(BRIEF, time_limit_s=0.0)).close_calls == ()


def test_what_is_better_than_the_answer_is_said_to_be() -> None:
    """The answer may be known to be good to a gap only; then what was almost chosen may be ahead of it."""
    problem = library(layers=6, names=4, seed=0)
    best, second = islice(pool(problem), 2)
    closest, *rest = sensitivity(problem, second).close_calls
    assert closest.score == best.score
    assert closest.worse == best.score - second.score < 0
    assert all(call.worse >= 0 for call in rest)
