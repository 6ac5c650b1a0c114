"""A joint score counts where it is worse than the sum of its parts, too."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.baselines.uniform import uniform
from solvers.errors import Infeasible
from solvers.exact import solver
from solvers.problem import Option, Problem, Solution
from solvers.refine.joint import paired, parted

LAYERS = 3
scores = st.floats(0, 10).map(lambda value: round(value, 3))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Two options a slot, some pairs scored together, and a run over the last layers."""
    options = []
    for layer in range(LAYERS):
        for place, names in enumerate((("a", "b"), ("x", "y"))):
            for number, name in enumerate(names):
                options.append(Option(2 * layer + place, 1, name, draw(scores), {"cost": 2.0 - number}))
        for one, other in product("ab", "xy"):
            if draw(st.booleans()):
                cost = {"a": 2.0, "b": 1.0}[one] + {"x": 2.0, "y": 1.0}[other]
                options.append(Option(2 * layer, 2, f"{one}{other}", draw(scores), {"cost": cost}, (one, other)))
    options.append(Option(2 * LAYERS - 3, 3, "fuse(x,x)", draw(scores), {"cost": 2.0}))
    return Problem(2 * LAYERS, tuple(options), {"cost": float(draw(st.integers(6, 12)))})


def true_score(chosen: dict[int, str], problem: Problem) -> float:
    """The score of one name per slot: pairs that were scored together count with their joint score."""
    known = {option.key: option.score for option in problem.options}
    total = 0.0
    for layer in range(LAYERS):
        one, other = chosen.get(2 * layer), chosen.get(2 * layer + 1)
        joint = known.get((2 * layer, 2, f"{one}{other}"))
        parts = [known[2 * layer + place, 1, name] for place, name in enumerate((one, other)) if name is not None]
        total += sum(parts) if joint is None else joint
    return total


def best(problem: Problem) -> float:
    """By trying everything."""
    found = [float("inf")]
    cost = {"a": 2.0, "b": 1.0, "x": 2.0, "y": 1.0}
    for names in product("ab", "xy", repeat=LAYERS):
        if sum(cost[name] for name in names) <= problem.maximums["cost"]:
            found.append(true_score(dict(enumerate(names)), problem))
    run = next(option for option in problem.options if option.span == 3)
    for names in product("ab", "xy", "ab"):
        if sum(cost[name] for name in names) + 2.0 <= problem.maximums["cost"]:
            found.append(true_score(dict(enumerate(names)), problem) + run.score)
    return min(found)


@given(problems())
def test_the_best_by_joint_scores_is_found(problem: Problem) -> None:
    try:
        solution = solver.solve(paired(problem))
    except Infeasible:
        assert best(problem) == float("inf")
        return
    assert abs(solution.score - best(problem)) < 1e-9
    again = Solution.of(problem, parted(solution.options, problem), solution.bound, 0.0, "mip")
    assert abs(again.score - solution.score) < 1e-9


def test_a_pair_worse_than_its_parts_is_not_had_for_their_sum() -> None:
    parts = [Option(slot, 1, name, 1.0, {"c": 1.0}) for slot, name in enumerate("ax")]
    problem = Problem(2, (*parts, Option(0, 2, "ax", 5.0, {"c": 2.0}, ("a", "x"))), {"c": 9.0})
    assert solver.solve(problem).score == 2.0
    assert solver.solve(paired(problem)).score == 5.0


def test_the_same_in_every_layer_counts_by_joint_scores_too() -> None:
    """By their parts ax is the best, scored together the worst."""
    scores = {"a": 0.1, "b": 0.2, "x": 0.1, "y": 0.2}
    options = [Option(slot, 1, name, scores[name], {"c": 1.0}) for slot in range(4) for name in ("ab", "xy")[slot % 2]]
    options += [Option(first, 2, "ax", 5.0, {"c": 2.5}, ("a", "x")) for first in (0, 2)]
    found = uniform(Problem(4, tuple(options), {"c": 9.0}))
    assert (found.score, found.costs["c"]) == (pytest.approx(0.6), 4.0)
    assert {option.name for option in found.options} in ({"a", "y"}, {"b", "x"})
    alone = tuple(option for option in options if option.name in ("a", "x", "ax"))
    found = uniform(Problem(4, alone, {"c": 9.0}))
    assert (found.score, found.costs["c"]) == (10.0, 5.0)


def test_a_problem_without_joint_options_stays_as_it_is() -> None:
    options = tuple(Option(slot, 1, name, 1.0, {"c": 1.0}) for slot in range(4) for name in "ab")
    problem = Problem(4, options, {"c": 9.0})
    assert paired(problem).options == options
