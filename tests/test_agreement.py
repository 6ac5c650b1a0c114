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
FILLINGS = {f"{one}+{other}": ((one, f"{one}@q"), (other, f"{other}@q")) for one, other in product(ATTENTIONS, FFNS)}
"""A name and the same with @q count as alike."""
NUMBERS = st.integers(0, 9).map(float)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Layers with all parts, some with whole blocks to drop, some with pairs scored together, and other kinds beside
    them, which no uniform architecture may use; behind the layers, maybe one more thing to choose."""
    options: list[Option] = []

    def add(first: int, span: int, name: str, parts: tuple[str, ...] = ()) -> None:
        costs = {"time": draw(NUMBERS), "memory": draw(NUMBERS)}
        options.append(Option(first, span, name, draw(NUMBERS), costs, parts))

    layers = draw(st.integers(1, 4))
    for layer in range(layers):
        others = draw(st.sets(st.sampled_from(["kv2@q", "ffn24@q"])))
        for name in (*ATTENTIONS, "linear", *sorted(others & {"kv2@q"})):
            add(2 * layer, 1, name)
        for name in (*FFNS, "skip", *sorted(others & {"ffn24@q"})):
            add(2 * layer + 1, 1, name)
        if draw(st.booleans()):
            add(2 * layer, 2, "skip+skip", EMPTY)
        if draw(st.booleans()):
            add(2 * layer, 2, "kv2+ffn12", ("kv2", "ffn12"))
    behind = draw(st.sampled_from([(), ((1, "head"),), ((2, "tables"), (1, "embedding"))]))
    for span, name in behind:
        for end in ("@q", "@p"):
            add(2 * layers, span, name + end)
    if len(behind) > 1:
        add(2 * layers + 1, 1, "head@q")
    limits = {
        name: draw(st.integers(0, 12 * layers)) * 1.0 for name in draw(st.sets(st.sampled_from(["time", "memory"])))
    }
    return Problem(max(option.end for option in options), tuple(options), limits)


def layers_of(problem: Problem) -> int:
    """Its layers have an attention; what is behind them has none."""
    return sum(option.name == "kv4" for option in problem.options)


def agree(problem: Problem) -> dict[str, Problem]:
    return agreeing(problem, FILLINGS, EMPTY, layers_of(problem))


def uniform(problem: Problem) -> Iterator[tuple[float, dict[str, float], dict[int, str]]]:
    """Score, costs and names of every uniform architecture, within the limits or not."""
    joint = {(option.first, option.parts): option for option in problem.options if option.parts}
    singles = {(option.first, option.name): option for option in problem.options if option.span == 1}
    layers = layers_of(problem)

    def at(layer: int, filling: Filling) -> list[Option]:
        if (2 * layer, filling) in joint:
            return [joint[2 * layer, filling]]
        parts = [singles.get((2 * layer + place, name)) for place, name in enumerate(filling)]
        return [] if None in parts else [part for part in parts if part is not None]

    behind = [[option] for option in problem.options if option.first == 2 * layers and option.end == problem.slots]
    behind += [
        [one, other] for one in problem.options for other in problem.options
        if (one.first, other.first) == (2 * layers, 2 * layers + 1) and one.span == 1
    ]  # fmt: skip
    seen = set()
    for alike in FILLINGS.values():
        for choice in product((*product(*alike), EMPTY), repeat=layers):
            placed = [at(layer, one) for layer, one in enumerate(choice)]
            if choice in seen or not all(placed):
                continue
            seen.add(choice)
            for end in behind or [[]]:
                options = [option for part in placed for option in part] + end
                yield math.fsum(option.score for option in options), total_costs(options), filled(options)


def within(problem: Problem) -> list[tuple[float, dict[str, float], dict[int, str]]]:
    return [one for one in uniform(problem) if all(limit.holds(one[1][limit.cost]) for limit in problem.limits)]


@given(problems())
def test_the_best_uniform_architecture_is_found_and_proven(problem: Problem) -> None:
    asked, known = agree(problem), within(problem)
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
    layers = {(names[slot], names[slot + 1]) for slot in range(0, 2 * layers_of(problem), 2)}
    assert layers <= {*product(*FILLINGS[name]), EMPTY}


@given(problems())
def test_the_limits_at_fault_are_the_fewest_that_no_uniform_architecture_meets(problem: Problem) -> None:
    if within(problem):
        return
    with pytest.raises(Infeasible) as refused:
        best_of(agree(problem))
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
    front = front_of_all(tuple(agree(problem).values()), "time", points=5)
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
    asked = tuple(agree(problem).values())
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
    assert agreeing(problem, FILLINGS, EMPTY, layers=2) == {}
