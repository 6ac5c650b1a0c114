"""The price of a limit is the slope of the relaxation on the looser side of it, against all mixtures of tilings."""

from collections.abc import Sequence
from dataclasses import replace

import highspy
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_solvers import library, meets, problems, score, tilings

from solvers.exact import solver
from solvers.exact.highs import quiet_highs
from solvers.problem import Option, Problem, total_costs
from solvers.queries.sensitivity import sensitivity

STEP = 1 / 1024
"""By so many units of cost is a limit made looser: less than there is to the next corner, mostly."""


def mixed(problem: Problem) -> float:
    """The least score of any mixture of tilings that meets the limits, by a linear program over all of them."""
    found = list(tilings(problem))
    highs = quiet_highs()
    for name in ("primal_feasibility_tolerance", "dual_feasibility_tolerance"):
        highs.setOptionValue(name, 1e-10)
    for options in found:
        highs.addVar(0.0, highspy.kHighsInf)
        highs.changeColCost(highs.getNumCol() - 1, score(options))
    columns = np.arange(len(found), dtype=np.int32)
    highs.addRow(1.0, 1.0, len(found), columns, np.ones(len(found)))
    for limit in problem.limits:
        totals = np.array([limit.sign * total_costs(options)[limit.cost] for options in found])
        highs.addRow(-highspy.kHighsInf, limit.sign * limit.value, len(found), columns, totals)
    highs.run()
    return float(highs.getObjectiveValue())


def looser(problem: Problem, name: str, step: float) -> Problem:
    maximums = {cost: value + step * (cost == name) for cost, value in problem.maximums.items()}
    minimums = {cost: value - step * (f"minimum {cost}" == name) for cost, value in problem.minimums.items()}
    return replace(problem, maximums=maximums, minimums=minimums)


def prices(problem: Problem) -> dict[str, float]:
    return dict(sensitivity(problem, solver.solve(problem), close_calls=0).prices)


def check(problem: Problem) -> None:
    here, found = mixed(problem), prices(problem)
    for limit in problem.limits:
        slopes = [(here - mixed(looser(problem, limit.name, step))) / step for step in (STEP, STEP / 2)]
        assume(slopes[0] == pytest.approx(slopes[1], rel=1e-6, abs=1e-6))
        assert found[limit.name] == pytest.approx(slopes[0], rel=1e-5, abs=1e-5)


def slots(*options: Sequence[tuple[float, float]]) -> tuple[Option, ...]:
    """Options by the slot, each a score and a cost."""
    return tuple(
        Option(slot, 1, f"o{place}", score, {"c": cost})
        for slot, here in enumerate(options)
        for place, (score, cost) in enumerate(here)
    )


AT_THE_EDGE = [
    (Problem(2, slots(*[[(1, 1), (0.5, 2)]] * 2), {"c": 2.0}), 0.5),
    (Problem(2, slots(*[[(1, 1), (0.5, 0)]] * 2), {}, {"c": 2.0}), 0.5),
    (Problem(2, slots(*[[(1, -1), (0.5, 0)]] * 2), {"c": -2.0}), 0.5),
    (Problem(2, slots(*[[(1, 0), (0.5, 1)]] * 2), {"c": 0.0}), 0.5),
    (Problem(2, slots([(1, 400), (0.5, 800)], [(1, 500), (0.25, 900)]), {"c": 900.0}), 0.75 / 400),
    (Problem(2, slots([(-1, 400), (-2, 800)], [(-1, 500), (-3, 900)]), {"c": 900.0}), 2 / 400),
    # Nothing better is to be had: the most reachable, and all there is.
    (Problem(2, slots(*[[(1, 1), (0.5, 2)]] * 2), {"c": 4.0}), 0.0),
    (Problem(1, slots([(1, 1)]), {"c": 1.0}), 0.0),
    # 0.1 + 0.2 is more than 0.3.
    (Problem(2, slots([(1, 0.1), (0, 1.1)], [(1, 0.2), (0.5, 1.2)]), {"c": 0.3}), 1.0),
    # Options that all share, and options that are far worse, hide nothing.
    (Problem(2, slots([(1e3, 0)], [(1e-3, 1), (0, 2), (1e4, 1)]), {"c": 1.0}), 1e-3),
]


@pytest.mark.parametrize(("problem", "price"), AT_THE_EDGE)
def test_at_the_least_that_can_be_had_the_price_is_that_of_a_looser_limit(problem: Problem, price: float) -> None:
    (found,) = prices(problem).values()
    assert found == pytest.approx(price, rel=1e-6, abs=1e-12)


def test_limits_that_bind_together_are_worth_nothing_one_by_one() -> None:
    plain = slots([(1, 1), (0.5, 2)], [(1, 1), (0.5, 2)])
    options = tuple(replace(option, costs=dict.fromkeys("cd", option.costs["c"])) for option in plain)
    assert prices(Problem(2, options, {"c": 2.0, "d": 2.0})) == {"c": 0.0, "d": 0.0}
    assert prices(Problem(2, options, {"c": 2.0}, {"d": 2.0})) == pytest.approx({"c": 0.5, "minimum d": 0.0}, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(problems(max_slots=3, whole=True))
def test_the_price_is_the_slope_on_the_looser_side(problem: Problem) -> None:
    assume(problem.limits and any(meets(some, problem.limits) for some in tilings(problem)))
    check(problem)


@settings(max_examples=60, deadline=None)
@given(problems(max_slots=3, whole=True), st.data())
def test_so_it_is_at_a_corner_and_at_the_edge(problem: Problem, data: st.DataObject) -> None:
    """Every limit is exactly what one tiling takes, or the least or most that any takes."""
    found = list(tilings(problem))
    assume(found)
    totals = total_costs(data.draw(st.sampled_from(found)))
    maximums = {cost: totals[cost] for cost in problem.maximums}
    minimums = {cost: totals[cost] for cost in problem.minimums}
    if data.draw(st.booleans()):
        least = {cost: min(total_costs(some)[cost] for some in found) for cost in "ab"}
        most = {cost: max(total_costs(some)[cost] for some in found) for cost in "ab"}
        side = data.draw(st.sampled_from(["maximum", "minimum"]))
        maximums, minimums = ({"a": least["a"]}, {}) if side == "maximum" else ({}, {"a": most["a"]})
        maximums |= data.draw(st.sampled_from([{}, {"b": most["b"]}, {"b": totals["b"]}]))
    at_it = replace(problem, maximums=maximums, minimums=minimums)
    assume(at_it.limits and any(meets(some, at_it.limits) for some in found))
    check(at_it)


@pytest.mark.parametrize("seed", range(3))
def test_a_large_problem_at_its_edge(seed: int) -> None:
    """The slope is that of a slightly looser limit, whose prices are the only ones."""
    problem = library(layers=40, names=8, seed=seed)
    solution = solver.solve(replace(problem, maximums={"latency": problem.maximums["latency"]}))
    least = sum(min(o.costs["memory"] for o in problem.options if o.first == slot) for slot in range(problem.slots))
    assert least < solution.costs["memory"]
    priced = tuple(replace(option, score=option.costs["memory"]) for option in problem.options)
    edge = solver.solve(replace(problem, options=priced, maximums={})).costs["memory"]
    at_edge = prices(replace(problem, maximums={"memory": edge}))["memory"]
    beyond = prices(replace(problem, maximums={"memory": edge * (1 + 1e-6) + 1e-9}))["memory"]
    assert at_edge == pytest.approx(beyond, rel=1e-3)
    assert at_edge > 0
