"""Layers that agree: the enumeration of shared fillings against every uniform architecture there is."""

import math
from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.errors import Infeasible
from solvers.problem import Option, Problem, Solution, total_costs, verify
from solvers.queries.batch_sweep import best_of
from solvers.queries.pareto import front_of_all
from solvers.queries.pool import pool_of_all
from solvers.refine.agreement import Filling, agreeing
from solvers.refine.joint import filled, parted

EMPTY = ("skip", "skip")
ATTENTIONS, FFNS = ("kv4", "kv2"), ("ffn48", "ffn24", "ffn12")
FILLINGS = tuple(product(ATTENTIONS, FFNS))
NUMBERS = st.integers(0, 9).map(float)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Layers with all parts, some with whole blocks to drop, some with pairs scored together, and other kinds beside
    them, which no uniform architecture may use."""
    options: list[Option] = []

    def add(first: int, span: int, name: str, parts: tuple[str, ...] = ()) -> None:
        costs = {"time": draw(NUMBERS), "memory": draw(NUMBERS)}
        options.append(Option(first, span, name, draw(NUMBERS), costs, parts))

    layers = draw(st.integers(1, 4))
    for layer in range(layers):
        for name in (*ATTENTIONS, "linear"):
            add(2 * layer, 1, name)
        for name in (*FFNS, "skip"):
            add(2 * layer + 1, 1, name)
        if draw(st.booleans()):
            add(2 * layer, 2, "skip+skip", EMPTY)
        if draw(st.booleans()):
            add(2 * layer, 2, "kv2+ffn12", ("kv2", "ffn12"))
    limits = {
        name: draw(st.integers(0, 12 * layers)) * 1.0 for name in draw(st.sets(st.sampled_from(["time", "memory"])))
    }
    return Problem(2 * layers, tuple(options), limits)


def uniform(problem: Problem) -> Iterator[tuple[float, dict[str, float], dict[int, str]]]:
    """Score, costs and names of every uniform architecture, within the limits or not."""
    joint = {(option.first, option.parts): option for option in problem.options if option.parts}
    singles = {(option.first, option.name): option for option in problem.options if option.span == 1}

    def at(layer: int, filling: Filling) -> list[Option] | None:
        if (2 * layer, filling) in joint:
            return [joint[2 * layer, filling]]
        parts = [singles.get((2 * layer + place, name)) for place, name in enumerate(filling)]
        return None if None in parts else [part for part in parts if part is not None]

    seen = set()
    for filling in FILLINGS:
        for choice in product((filling, EMPTY), repeat=problem.slots // 2):
            placed = [at(layer, one) for layer, one in enumerate(choice)]
            if choice in seen or None in placed:
                continue
            seen.add(choice)
            options = [option for part in placed if part is not None for option in part]
            yield math.fsum(option.score for option in options), total_costs(options), filled(options)


def within(problem: Problem) -> list[tuple[float, dict[str, float], dict[int, str]]]:
    return [one for one in uniform(problem) if all(limit.holds(one[1][limit.cost]) for limit in problem.limits)]


@given(problems())
def test_the_best_uniform_architecture_is_found_and_proven(problem: Problem) -> None:
    asked, known = agreeing(problem, FILLINGS, EMPTY), within(problem)
    if not known:
        with pytest.raises(Infeasible) as refused:
            best_of(asked)
        assert refused.value.budgets
        return
    name, found = best_of(asked)
    assert found.score == min(score for score, _, _ in known)
    assert found.status == "optimal"
    options = parted(found.options, problem)
    verify(problem, Solution.of(problem, options, found.bound, 0.0, "plain"))
    names = filled(options)
    layers = {(names[slot], names[slot + 1]) for slot in range(0, problem.slots, 2)}
    assert layers <= {tuple(name.split("+")), EMPTY}


@given(problems())
def test_the_limits_at_fault_are_the_fewest_that_no_uniform_architecture_meets(problem: Problem) -> None:
    if within(problem):
        return
    with pytest.raises(Infeasible) as refused:
        best_of(agreeing(problem, FILLINGS, EMPTY))
    every, limits = list(uniform(problem)), {limit.name: limit for limit in problem.limits}
    alone = {name for name, limit in limits.items() if not any(limit.holds(costs[name]) for _, costs, _ in every)}
    assert set(refused.value.budgets) <= alone if alone else set(refused.value.budgets) == set(limits)
    for name, least in refused.value.least.items():
        assert least == min(costs[name] for _, costs, _ in every)
    for name, least in refused.value.together.items():
        others = [limit for limit in problem.limits if limit.name != name]
        assert least == min(
            costs[name] for _, costs, _ in every if all(limit.holds(costs[limit.cost]) for limit in others)
        )


@given(problems())
def test_the_front_of_uniform_architectures_is_undominated_and_ends_at_both_ends(problem: Problem) -> None:
    known = within(problem)
    if not known:
        return
    front = front_of_all(tuple(agreeing(problem, FILLINGS, EMPTY).values()), "time", points=5)
    assert front[0].costs["time"] == min(costs["time"] for _, costs, _ in known)
    assert front[-1].score == min(score for score, _, _ in known)
    for point in front:
        assert not [
            one for one in known
            if one[0] <= point.score and one[1]["time"] <= point.costs["time"]
            and (one[0] < point.score or one[1]["time"] < point.costs["time"])
        ]  # fmt: skip


@given(problems(), st.integers(1, 2))
def test_the_pool_of_uniform_architectures_is_the_greedy_one(problem: Problem, apart: int) -> None:
    left = within(problem)
    asked = tuple(agreeing(problem, FILLINGS, EMPTY).values())
    if not left:
        with pytest.raises(Infeasible):
            next(pool_of_all(asked, apart=apart))
        return
    for found in pool_of_all(asked, apart=apart):
        assert found.score == min(score for score, _, _ in left)
        there = filled(found.options)
        left = [one for one in left if sum(there[slot] != name for slot, name in one[2].items()) >= apart]
    assert not left


def test_a_filling_that_a_layer_lacks_is_no_problem_of_its_own() -> None:
    def option(first: int, name: str) -> Option:
        return Option(first, 1, name, 1.0, {"time": 1.0})

    problem = Problem(4, (*(option(slot, "kv4") for slot in (0, 2)), option(1, "ffn48"), option(3, "ffn24")), {})
    assert agreeing(problem, FILLINGS, EMPTY) == {}
