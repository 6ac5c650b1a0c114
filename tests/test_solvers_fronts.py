"""Many solutions of one problem, against exhaustive search: the front of score and cost, and pools of solutions."""

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_solvers import few, least_score, library, meets, problems, score, tilings, two_slots, unlike

from solvers.errors import Infeasible
from solvers.exact import minimise, solver
from solvers.exact.program import Answer
from solvers.exact.settings import Engine, Settings
from solvers.problem import Option, Problem, total_costs
from solvers.queries import pareto
from solvers.queries import pool as pools
from solvers.queries.pool import pool

pytestmark = pytest.mark.filterwarnings("ignore:PULP_CBC_CMD")


@few
@given(problems(max_slots=4), st.integers(1, 3), st.sampled_from(["highs", "cbc"]))
def test_a_pool_holds_the_best_of_what_is_unlike_all_before(problem: Problem, slots: int, engine: Engine) -> None:
    if least_score(problem) is None:
        with pytest.raises(Infeasible):
            next(pool(problem))
        return
    slots = min(slots, problem.slots)
    found = list(islice(pool(problem, Settings(engine=engine), apart=slots), 4))
    left = [options for options in tilings(problem) if meets(options, problem.limits)]
    for solution in found:
        assert solution.score == pytest.approx(min(map(score, left)), abs=1e-9)
        left = [options for options in left if unlike(options, solution.options) >= slots]
    assert len(found) == 4 or not left


@pytest.mark.parametrize("apart", [0, 3])
def test_a_pool_is_of_different_solutions(apart: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 2 slots apart, not {apart}"):
        next(pool(two_slots(), apart=apart))


def test_a_pool_that_runs_out_of_time_says_so_after_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([minimise.minimise, lambda *_, **__: Answer("timed out")])
    monkeypatch.setattr(pools, "minimise", lambda *asked, **how: next(answers)(*asked, **how))
    found = pool(two_slots(), Settings(time_limit_s=1.0))
    assert next(found).score == solver.solve(two_slots()).score
    with pytest.raises(TimeoutError, match=r"in 1 s no solution was found"):
        next(found)


def test_the_parts_of_a_pair_are_counted_one_by_one() -> None:
    """Three pairs: of the first the second differs in one part, the third in both."""
    pairs = (("ax", 1.0), ("ay", 2.0), ("by", 3.0))
    problem = Problem(2, tuple(Option(0, 2, name, score, {}, tuple(name)) for name, score in pairs), {})
    for apart, expected in ((1, ["ax", "ay", "by"]), (2, ["ax", "by"])):
        assert [one.options[0].name for one in pool(problem, apart=apart)] == expected


@few
@given(problems(whole=True, max_slots=4), st.integers(2, 9))
def test_a_front_holds_all_that_is_undominated_at_its_resolution(problem: Problem, points: int) -> None:
    """At each value of the grid, which need not be a whole number, the best that costs no more."""
    right = [options for options in tilings(problem) if meets(options, problem.limits)]
    if not right:
        return
    found = pareto.front(problem, "a", points=points)
    costs = [total_costs(options)["a"] for options in right]
    best = min(map(score, right))
    dearest = min(cost for cost, options in zip(costs, right, strict=True) if score(options) <= best + 1e-9)
    for value in np.linspace(min(costs), dearest, points):
        within = [score(o) for cost, o in zip(costs, right, strict=True) if cost <= value + 1e-9 * abs(value)]
        there = [solution.score for solution in found if solution.costs["a"] <= value + 1e-8 * max(1, abs(value))]
        assert min(there) == pytest.approx(min(within), abs=1e-8)


@few
@given(problems(whole=True, max_slots=5))
def test_the_front_is_the_whole_front(problem: Problem) -> None:
    right = [options for options in tilings(problem) if meets(options, problem.limits)]
    if not right:
        with pytest.raises(Infeasible):
            pareto.front(problem, "a")
        return
    points = {(total_costs(options)["a"], score(options)) for options in right}
    whole = sorted(p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points))
    # The costs are whole numbers: a grid of step one meets them all.
    steps = max(1, int(whole[-1][0] - whole[0][0]))
    found = pareto.front(problem, "a", points=steps + 1)
    assert [(solution.costs["a"], solution.score) for solution in found] == whole
    for solution in pareto.front(problem, "a", points=2):
        assert (solution.costs["a"], solution.score) in whole


@few
@given(problems(whole=True, max_slots=4), st.lists(st.integers(-5, 60), max_size=4))
def test_a_front_is_solved_at_more_values_where_asked(problem: Problem, also: list[int]) -> None:
    """Values out of reach, or past the best, change nothing."""
    right = [options for options in tilings(problem) if meets(options, problem.limits)]
    if not right:
        return
    found = pareto.front_of_all((problem,), "a", 2, also=also)
    for value in also:
        within = [score(options) for options in right if total_costs(options)["a"] <= value]
        there = [solution.score for solution in found if solution.costs["a"] <= value + 1e-8 * max(1, abs(value))]
        assert not within or min(there) == pytest.approx(min(within), abs=1e-8)


def test_a_point_of_the_front_has_the_least_cost_of_its_score() -> None:
    options = [Option(slot, 1, "dear", 0.0, {"a": 5.0}) for slot in range(3)]
    options += [Option(slot, 1, "cheap", 0.0, {"a": 3.0}) for slot in range(3)]
    options += [Option(slot, 1, "skip", 1.0, {"a": 0.0}) for slot in range(3)]
    found = pareto.front(Problem(3, tuple(options), {}), "a", points=2)
    assert [(solution.costs["a"], solution.score) for solution in found] == [(0, 3), (9, 0)]


def test_the_front_of_a_library_descends() -> None:
    problem = library(layers=10, names=4, seed=3)
    found = pareto.front(problem, "latency", points=8)
    assert len(found) == 8
    assert all(a.costs["latency"] < b.costs["latency"] and a.score > b.score for a, b in pairwise(found))
    assert all(solution.costs["memory"] <= problem.maximums["memory"] * (1 + 1e-9) for solution in found)


def test_a_front_begins_at_the_least_cost_whatever_gap_its_scores_may_have() -> None:
    """The other cost is limited, so that the least of this one takes a solver to find."""
    numbers = np.random.default_rng(2).random((30, 8, 3)).tolist()
    options = [
        (slot, f"o{name}", score, {"a": a, "b": b})
        for slot, rows in enumerate(numbers)
        for name, (score, a, b) in enumerate(rows)
    ]
    limit = {"b": 8.0}
    problem = Problem(30, tuple(Option(slot, 1, name, score, costs) for slot, name, score, costs in options), limit)
    by_cost = Problem(30, tuple(Option(slot, 1, name, costs["a"], costs) for slot, name, _, costs in options), limit)
    found = pareto.front(problem, "a", 5, Settings(gap=0.3))
    assert found[0].costs["a"] == pytest.approx(solver.solve(by_cost).score)
