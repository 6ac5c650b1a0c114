"""The baselines, each by its own rule; and that none of them beats the exact solver on the same problem."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.baselines.greedy import greedy
from solvers.baselines.max_parameters import max_parameters
from solvers.baselines.no_op_only import no_op_only
from solvers.baselines.random import random_architecture
from solvers.baselines.shortgpt import drop_layers
from solvers.baselines.uniform import uniform
from solvers.errors import Infeasible
from solvers.exact import solver
from solvers.problem import Option, Problem, Solution, total_costs, verify
from solvers.refine.joint import filled, paired


def library(layers: int, seed: int, budget: float) -> Problem:
    """Three attentions, three FFNs and a dropped block per layer, fused runs; one maximum, on latency."""
    rng = random.Random(seed)
    options = []
    for layer in range(layers):
        harm = rng.expovariate(1)
        for slot, name, share in (
            (0, "kv8", 1.0),
            (0, "kv2", 0.7),
            (0, "skip", 0.0),
            (1, "ffn512", 3.0),
            (1, "ffn256", 1.5),
            (1, "skip", 0.0),
        ):
            lost = {0: 1.0, 1: 3.0}[slot] - share
            score = harm * lost * rng.uniform(0.5, 1.5)
            options.append(Option(2 * layer + slot, 1, name, score, {"latency": share, "bytes": 10 * share}))
        options.append(
            Option(2 * layer, 2, "none", harm * rng.uniform(3, 5), {"latency": 0.0, "bytes": 0.0}, ("skip", "skip"))
        )
    for layer in range(0, layers - 1, 2):
        options.append(Option(2 * layer + 1, 3, "fuse", rng.uniform(0, 1), {"latency": 3.5, "bytes": 60.0}))
    return Problem(2 * layers, tuple(options), {"latency": budget * 4.0 * layers})


def parent_of(problem: Problem) -> tuple[Option, ...]:
    return tuple(option for option in problem.options if option.name in ("kv8", "ffn512"))


def influence_of(problem: Problem) -> list[float]:
    return [option.score for option in problem.options if option.name == "none"]


def latency(solution: Solution) -> float:
    return solution.costs["latency"]


BASELINES: dict[str, Callable[[Problem], Solution]] = {
    "greedy": greedy,
    "uniform": uniform,
    "max_parameters": lambda problem: max_parameters(problem, "bytes"),
    "no_op_only": lambda problem: no_op_only(problem, parent_of(problem)),
    "random": lambda problem: random_architecture(problem, seed=0),
    "shortgpt": lambda problem: drop_layers(problem, parent_of(problem), influence_of(problem)),
}


@pytest.mark.parametrize("name", BASELINES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), budget=st.sampled_from([0.0, 0.3, 0.5, 0.77, 1.0]))
def test_no_baseline_beats_the_exact_solver(name: str, seed: int, budget: float) -> None:
    problem = library(layers=6, seed=seed, budget=budget)
    solution = BASELINES[name](problem)
    verify(problem, solution)
    best = solver.solve(problem)
    assert best.score <= solution.score + 1e-9
    assert solution.bound <= best.score + 1e-9
    assert solution.solver == name


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_takes_a_minimum(name: str) -> None:
    problem = library(layers=6, seed=1, budget=0.9)
    solution = BASELINES[name](replace(problem, minimums={"bytes": 130.0}))
    assert solution.costs["bytes"] >= 130


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_says_what_it_could_not_meet(name: str) -> None:
    problem = library(layers=6, seed=1, budget=1.0)
    with pytest.raises(Infeasible, match="latency") as caught:
        BASELINES[name](replace(problem, maximums={"latency": -1.0}))
    assert caught.value.budgets == ("latency",)
    assert caught.value.least == {"latency": 0.0}


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_names_slots_that_no_option_covers(name: str) -> None:
    problem = library(layers=3, seed=1, budget=1.0)
    options = tuple(option for option in problem.options if not option.first <= 2 < option.end)
    with pytest.raises(Infeasible, match="no option covers slots 2"):
        BASELINES[name](replace(problem, options=options))


def flat(rows: list[list[tuple[str, float, float]]], budget: float) -> Problem:
    """One slot per row; each option is its name, its score and its latency."""
    options = [
        Option(slot, 1, name, score, {"latency": cost}) for slot, row in enumerate(rows) for name, score, cost in row
    ]
    return Problem(len(rows), tuple(options), {"latency": budget})


def names(solution: Solution) -> list[str]:
    return [option.name for option in solution.options]


def test_greedy_rolls_what_is_left_to_the_next_layer() -> None:
    """By hand: a share of 4 each. The least harmed layer is visited first and takes 4; the next has 4 and only 1 fits;
    the last has 4 + 3 left over, and 6 fits."""
    rows = [
        [("big", 0.0, 6.0), ("small", 9.0, 1.0)],
        [("big", 0.0, 6.0), ("small", 3.0, 1.0)],
        [("big", 0.0, 4.0), ("small", 1.0, 1.0)],
    ]
    solution = greedy(flat(rows, budget=12.0), slots_per_layer=1)
    assert names(solution) == ["big", "small", "big"]
    assert latency(solution) == 11


def test_greedy_overdraws_least_where_nothing_fits() -> None:
    """A share of 4: the first layer takes 5 for want of less, the second has 3 left."""
    rows = [[("big", 0.0, 9.0), ("small", 0.1, 5.0)], [("big", 0.0, 4.0), ("small", 5.0, 2.0)]]
    solution = greedy(flat(rows, budget=8.0), slots_per_layer=1)
    assert names(solution) == ["small", "small"]
    with pytest.raises(Infeasible, match="greedy, taking the layers one by one, ends outside the limits: latency is 7"):
        greedy(flat(rows, budget=6.5), slots_per_layer=1)


def test_greedy_weighs_whole_blocks() -> None:
    """Apart both subblocks score 2; dropped together they score 1, and that is one of the layer's variants."""
    halves = [Option(slot, 1, "skip", 2.0, {"latency": 0.0}) for slot in range(2)]
    full = [Option(slot, 1, "full", 0.0, {"latency": 1.0}) for slot in range(2)]
    whole = Option(0, 2, "none", 1.0, {"latency": 0.0}, ("skip", "skip"))
    assert names(greedy(Problem(2, (*halves, *full, whole), {"latency": 1.0}))) == ["none"]


def test_greedy_needs_layers_that_stand_alone() -> None:
    ends = (Option(0, 1, "x", 0.0, {}), Option(1, 2, "fuse", 0.0, {}), Option(3, 1, "x", 0.0, {}))
    with pytest.raises(Infeasible, match="no options tile layer 0 by itself"):
        greedy(Problem(4, ends, {}))


def test_uniform_is_the_best_of_all_uniform_choices() -> None:
    problem = library(layers=5, seed=2, budget=0.6)
    found = []
    for attention in ("kv8", "kv2", "skip"):
        for ffn in ("ffn512", "ffn256", "skip"):
            options = [o for o in problem.options if o.span == 1 and o.name == (ffn if o.first % 2 else attention)]
            if total_costs(options)["latency"] <= problem.maximums["latency"]:
                found.append(math.fsum(option.score for option in options))
    assert uniform(problem).score == min(found)


def test_uniform_takes_only_names_that_stand_in_every_layer() -> None:
    rows = [[("a", 0.0, 1.0), ("b", 5.0, 1.0)], [("b", 5.0, 1.0), ("c", 0.0, 1.0)]]
    assert names(uniform(flat(rows, budget=2.0), slots_per_layer=1)) == ["b", "b"]
    with pytest.raises(Infeasible, match="no single-slot option stands at slot 0 of every layer"):
        uniform(flat([rows[0][:1], rows[1][1:]], budget=2.0), slots_per_layer=1)


@pytest.mark.parametrize("solver", [greedy, uniform])
def test_slots_are_whole_layers(solver: Callable[[Problem], Solution]) -> None:
    with pytest.raises(ValueError, match="3 slots are not layers of 2 slots"):
        solver(flat([[("a", 0.0, 1.0)]] * 3, budget=3.0))


def test_random_uses_its_budget_and_depends_on_its_seed_alone() -> None:
    problem = library(layers=10, seed=3, budget=0.5)
    found = [random_architecture(problem, seed) for seed in range(8)]
    assert all(latency(solution) >= 0.97 * problem.maximums["latency"] for solution in found)
    assert len({tuple(names(solution)) for solution in found}) == 8
    assert random_architecture(problem, 0).options == found[0].options
    scores = [replace(option, score=-option.score) for option in problem.options]
    assert names(random_architecture(replace(problem, options=tuple(scores)), 0)) == names(found[0])


def test_random_uses_what_it_can_where_the_budget_is_out_of_reach() -> None:
    """All there is to use is 4 per layer; twice that is allowed."""
    problem = library(layers=4, seed=3, budget=2.0)
    most = sum(4.0 for _ in range(4))
    for seed in range(3):
        assert latency(random_architecture(problem, seed)) >= 0.99 * most


def test_random_favours_no_length_of_span() -> None:
    """Five tilings that share nothing, four of one long option and one of three short ones, come equally often."""
    short = [Option(slot, 1, "short", 0.0, {}) for slot in range(3)]
    long = [Option(0, 3, f"long{i}", 0.0, {}) for i in range(4)]
    problem = Problem(3, (*short, *long), {})
    shorts = sum(len(random_architecture(problem, seed).options) == 3 for seed in range(200))
    assert 24 < shorts < 56


def test_random_without_a_maximum_and_with_a_wrong_share() -> None:
    problem = library(layers=2, seed=0, budget=1.0)
    verify(replace(problem, maximums={}), random_architecture(replace(problem, maximums={}), seed=0))
    with pytest.raises(ValueError, match="use_at_least is 97"):
        random_architecture(problem, seed=0, use_at_least=97)


def test_shortgpt_drops_the_least_influential_layers_and_no_more_than_needed() -> None:
    problem = library(layers=5, seed=4, budget=0.6)
    solution = drop_layers(problem, parent_of(problem), [0.3, 0.1, 0.5, 0.2, 0.4])
    assert names(solution) == ["kv8", "ffn512", "none", "kv8", "ffn512", "none", "kv8", "ffn512"]
    whole = drop_layers(replace(problem, maximums={}), parent_of(problem), [0.3, 0.1, 0.5, 0.2, 0.4])
    assert set(names(whole)) == {"kv8", "ffn512"}


def test_shortgpt_drops_by_halves_and_keeps_what_cannot_be_dropped() -> None:
    problem = library(layers=3, seed=4, budget=2 / 3)
    options = [o for o in problem.options if o.name != "none" and not (o.name == "skip" and o.first < 2)]
    halves = replace(problem, options=tuple(options))
    solution = drop_layers(halves, parent_of(problem), [0.0, 0.2, 0.1])
    assert names(solution) == ["kv8", "ffn512", "kv8", "ffn512", "skip", "skip"]
    with pytest.raises(Infeasible, match="with 2 layers dropped, the most possible: latency is 4, over the maximum 1"):
        drop_layers(replace(halves, maximums={"latency": 1.0}), parent_of(problem), [0.0, 0.2, 0.1])


def test_shortgpt_says_what_is_wrong_with_its_inputs() -> None:
    problem = library(layers=3, seed=4, budget=0.6)
    parent = parent_of(problem)
    with pytest.raises(ValueError, match="2 block influences for 3 layers"):
        drop_layers(problem, parent, [0.1, 0.2])
    with pytest.raises(ValueError, match="block influence of layer 1 is nan"):
        drop_layers(problem, parent, [0.1, math.nan, 0.2])
    with pytest.raises(ValueError, match="do not tile the slots: ffn512 at slot 1, where slot 0 is next"):
        drop_layers(problem, parent[1:], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="cover 5 of 6 slots"):
        drop_layers(problem, parent[:-1], [0.1, 0.2, 0.3])
    fuse = next(option for option in problem.options if option.name == "fuse")
    with pytest.raises(ValueError, match="spans layers"):
        drop_layers(problem, (parent[0], fuse, *parent[4:]), [0.1, 0.2, 0.3])


def tilings(problem: Problem, slot: int = 0) -> list[list[Option]]:
    """All of them, within the limits or not."""
    if slot == problem.slots:
        return [[]]
    return [
        [option, *rest] for option in problem.options if option.first == slot for rest in tilings(problem, option.end)
    ]


@pytest.mark.parametrize("budget", [0.3, 0.6, 0.9])
def test_max_parameters_is_the_most_there_is_room_for(budget: float) -> None:
    problem = library(layers=3, seed=5, budget=budget)
    totals = [total_costs(tiling) for tiling in tilings(problem)]
    most = max(total["bytes"] for total in totals if problem.limits[0].holds(total["latency"]))
    assert max_parameters(problem, "bytes").costs["bytes"] == pytest.approx(most)


def test_max_parameters_knows_no_scores_and_names_the_costs() -> None:
    problem = library(layers=4, seed=5, budget=0.5)
    turned = replace(problem, options=tuple(replace(option, score=-option.score) for option in problem.options))
    assert max_parameters(problem, "bytes").costs == max_parameters(turned, "bytes").costs
    with pytest.raises(ValueError, match="no option has the cost 'parameters'; they have latency, bytes"):
        max_parameters(problem)


@pytest.mark.parametrize("offered", [lambda problem: problem, paired], ids=["singles", "pairs"])
def test_no_op_only_is_the_best_of_what_is_kept_or_left_out(offered: Callable[[Problem], Problem]) -> None:
    problem = offered(library(layers=3, seed=6, budget=0.6))
    solution = no_op_only(problem, parent_of(library(layers=3, seed=6, budget=0.6)))
    kept = {"kv8", "ffn512", "skip"}
    assert set(filled(solution.options).values()) <= kept
    found = [
        math.fsum(option.score for option in tiling)
        for tiling in tilings(problem)
        if set(filled(tiling).values()) <= kept and problem.limits[0].holds(total_costs(tiling)["latency"])
    ]
    assert solution.score == pytest.approx(min(found))


def test_no_op_only_needs_something_to_leave_out() -> None:
    problem = library(layers=3, seed=6, budget=0.5)
    lean = replace(problem, options=tuple(option for option in problem.options if option.name not in ("skip", "none")))
    with pytest.raises(Infeasible, match="latency has maximum 6 and is 12 at the least"):
        no_op_only(lean, parent_of(problem))
    with pytest.raises(Infeasible, match="with only the parent's own options and skip: no option covers slots 0, 1"):
        no_op_only(lean, parent_of(problem)[2:])
