"""The exact solver and its explanations, against exhaustive search on small problems."""

import math
import pickle
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.errors import Infeasible
from solvers.exact import solver
from solvers.exact.settings import Settings
from solvers.problem import Constraint, Option, Problem, Solution, total_costs, verify

few = settings(max_examples=100, deadline=None)


def tilings(problem: Problem, slot: int = 0) -> Iterator[tuple[Option, ...]]:
    if slot == problem.slots:
        yield ()
    for option in problem.options:
        if option.first == slot:
            yield from ((option, *rest) for rest in tilings(problem, option.end))


def meets(options: tuple[Option, ...], limits: tuple[Constraint, ...]) -> bool:
    totals = total_costs(options)
    return all(limit.holds(totals[limit.cost]) for limit in limits)


def score(options: tuple[Option, ...]) -> float:
    return math.fsum(option.score for option in options)


def least_score(problem: Problem) -> float | None:
    return min((score(options) for options in tilings(problem) if meets(options, problem.limits)), default=None)


def unlike(options: tuple[Option, ...], others: tuple[Option, ...]) -> int:
    keys = {option.key for option in others}
    return sum(option.span for option in options if option.key not in keys)


@st.composite
def problems(draw: st.DrawFn, whole: bool = False, max_slots: int = 6) -> Problem:
    """Small ones, with spans, ties, negative numbers, and limits that often cannot be met. Tenths do not add up in
    floating point: 0.1 + 0.2 must still meet a limit of 0.3."""
    slots = draw(st.integers(1, max_slots))
    unit = 1.0 if whole else draw(st.sampled_from([1.0, 0.1, 1e-12, 1e9]))
    options = []
    for first in range(slots):
        spans = draw(st.lists(st.integers(1, min(3, slots - first)), min_size=1, max_size=4))
        for name, span in enumerate(spans):
            costs = {cost: draw(st.integers(-1, 6)) * unit for cost in "ab"}
            options.append(Option(first, span, f"o{name}", float(draw(st.integers(-2, 9))), costs))
    limits = st.dictionaries(st.sampled_from("ab"), st.integers(-1, 3 * slots).map(lambda n: n * unit))
    return Problem(slots, tuple(options), draw(limits), draw(limits))


def library(layers: int, names: int, seed: int, budget: float = 0.6) -> Problem:
    """Like a real one: random scores, costs that fall with the name, fused runs; maximums on latency and memory."""
    rng = random.Random(seed)
    options = []
    for slot in range(2 * layers):
        harm = rng.expovariate(1)
        for name in range(names):
            share = 1 - name / (names - 1)
            costs = {"latency": share * rng.uniform(1, 1.3), "memory": share * rng.uniform(1, 1.3)}
            options.append(Option(slot, 1, f"o{name}", harm * (1 - share) ** 2 * rng.uniform(0.5, 1.5), costs))
    for layer in range(0, layers - 2, 3):
        costs = {"latency": rng.uniform(1, 2), "memory": rng.uniform(2, 3)}
        options.append(Option(2 * layer + 1, 3, "fuse", rng.uniform(0, 2), costs))
    whole = total_costs([option for option in options if option.name == "o0"])
    return Problem(2 * layers, tuple(options), {name: budget * total for name, total in whole.items()})


@few
@given(problems())
def test_it_agrees_with_exhaustive_search(problem: Problem) -> None:
    best = least_score(problem)
    if best is None:
        with pytest.raises(Infeasible):
            solver.solve(problem)
    else:
        solution = solver.solve(problem)
        assert solution.score == pytest.approx(best, abs=1e-9)
        assert solution.status == "optimal"
        assert solution.bound <= best + 1e-9
        verify(problem, solution)


@few
@given(problems())
def test_infeasible_names_a_smallest_set_of_limits_and_what_they_could_be(problem: Problem) -> None:
    if not any(True for _ in tilings(problem)) or least_score(problem) is not None:
        return
    with pytest.raises(Infeasible) as caught:
        solver.solve(problem)
    limits = {limit.name: limit for limit in problem.limits}
    at_fault = tuple(limits[name] for name in caught.value.budgets)
    smaller = [subset for size in range(len(at_fault)) for subset in combinations(problem.limits, size)]
    everything = list(tilings(problem))
    assert not any(meets(options, at_fault) for options in everything)
    assert all(any(meets(options, subset) for options in everything) for subset in smaller)
    for limit in at_fault:
        others = tuple(other for other in at_fault if other != limit)
        extreme = max if limit.minimum else min
        alone = extreme(total_costs(options)[limit.cost] for options in everything)
        together = extreme(total_costs(options)[limit.cost] for options in everything if meets(options, others))
        assert caught.value.least[limit.name] == pytest.approx(alone)
        assert f"{caught.value.least[limit.name]:.10g}" in str(caught.value)
        if others:
            assert caught.value.together[limit.name] == pytest.approx(together, rel=1e-6)


@pytest.mark.parametrize("factor", [1e-8, 1e-3, 7.0, 1e8])
def test_the_scale_of_scores_changes_nothing(factor: float) -> None:
    problem = library(layers=12, names=5, seed=1)
    scaled = replace(problem, options=tuple(replace(o, score=o.score * factor) for o in problem.options))
    one, other = solver.solve(problem), solver.solve(scaled)
    assert [o.key for o in one.options] == [o.key for o in other.options]
    assert other.score == pytest.approx(one.score * factor, rel=1e-12)
    assert other.status == "optimal"


@pytest.mark.parametrize("factor", [1e-12, 1e-6, 7.0, 1e12])
def test_the_unit_of_a_cost_changes_nothing(factor: float) -> None:
    problem = library(layers=12, names=5, seed=2)
    maximums = {**problem.maximums, "memory": problem.maximums["memory"] * factor}
    options = tuple(replace(o, costs={**o.costs, "memory": o.costs["memory"] * factor}) for o in problem.options)
    one, other = solver.solve(problem), solver.solve(Problem(problem.slots, options, maximums))
    assert [o.key for o in one.options] == [o.key for o in other.options]


@pytest.mark.parametrize("outlier", [1e3, 1e9, 1e15])
def test_one_terrible_option_blurs_nothing(outlier: float) -> None:
    problem = library(layers=12, names=5, seed=4)
    best = solver.solve(problem)
    # The cheapest at its slot: nothing dominates it, so the solver has to look at it.
    options = tuple(replace(o, score=outlier) if (o.first, o.name) == (0, "o4") else o for o in problem.options)
    assert best.options[0].name != "o4"
    solution = solver.solve(replace(problem, options=options))
    assert solution.score == pytest.approx(best.score, rel=1e-6)
    assert solution.status == "optimal"


def test_a_larger_budget_never_scores_worse() -> None:
    scores = [solver.solve(library(layers=10, names=5, seed=5, budget=0.3 + 0.05 * step)).score for step in range(12)]
    assert all(wider <= tighter * (1 + 1e-6) for tighter, wider in pairwise(scores))
    assert scores[-1] < scores[0]


def test_no_limits_is_a_shortest_path() -> None:
    problem = replace(library(layers=6, names=3, seed=6), maximums={})
    solution = solver.solve(problem)
    assert (solution.score, solution.gap) == (pytest.approx(0, abs=1e-12), 0)
    assert {option.name for option in solution.options} == {"o0"}


def at_its_limit(excess: float, slots: int = 4) -> Problem:
    """The limit is 0, so nothing is tolerated; the best scores are over it by `excess`, which HiGHS takes for 0."""
    options = []
    for slot in range(slots):
        options.append(Option(slot, 1, "credit", 0.0, {"a": -1.0}))
        options.append(Option(slot, 1, "zero", -0.5, {"a": 0.0}))
        options.append(Option(slot, 1, "under", -1.0, {"a": 1.0}))
        options.append(Option(slot, 1, "over", -2.0, {"a": 1.0 + excess}))
    return Problem(slots, tuple(options), {"a": 0.0})


@pytest.mark.parametrize("excess", [9e-11, 1e-11])
def test_a_sum_over_its_limit_by_less_than_the_solver_sees_is_not_returned(excess: float) -> None:
    problem = at_its_limit(excess)
    solution = solver.solve(problem)
    assert solution.costs["a"] <= 0
    assert solution.score == least_score(problem)
    assert solution.status == "optimal"


def test_sums_a_mip_solver_cannot_tell_from_their_limit_are_told_apart() -> None:
    problem = at_its_limit(1e-12, slots=8)
    solution = solver.solve(problem)
    assert solution.score == least_score(problem)
    assert solution.costs["a"] <= 0


def hard(seed: int = 0) -> Problem:
    """Strongly correlated, with many limits: no solver is through with it in a moment."""
    rng = random.Random(seed)
    options = []
    for slot in range(120):
        for name in range(30):
            costs = {cost: rng.uniform(1, 100) for cost in "abcdef"}
            options.append(Option(slot, 1, f"o{name}", 1000 - sum(costs.values()) + rng.random(), costs))
    return Problem(120, tuple(options), dict.fromkeys("abcdef", 45.0 * 120))


def test_a_time_out_is_never_called_optimal() -> None:
    problem = hard()
    solution = solver.solve(problem, Settings(0.0, 1.5))
    verify(problem, solution)
    assert solution.status == "feasible"
    assert 1e-6 < solution.gap < 1
    assert solution.bound < solution.score
    assert solution.seconds < 10


def test_a_coarse_gap_is_not_called_optimal() -> None:
    problem = library(layers=20, names=6, seed=7)
    coarse, fine = solver.solve(problem, Settings(gap=0.2)), solver.solve(problem)
    assert fine.status == "optimal"
    assert coarse.bound <= fine.score <= coarse.score
    assert (coarse.status == "optimal") == (coarse.gap <= 1e-6)
    assert coarse.gap <= 0.2


def test_solving_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    solver.solve(library(layers=6, names=4, seed=8))
    assert capfd.readouterr() == ("", "")


def two_slots() -> Problem:
    """Latency and memory pull apart: what is fast is large."""
    small, fast = {"latency": 9.0, "memory": 1.0}, {"latency": 1.0, "memory": 9.0}
    options = [
        Option(slot, 1, name, 1.0, costs) for slot in range(2) for name, costs in (("small", small), ("fast", fast))
    ]
    return Problem(2, tuple(options), {})


def test_one_budget_too_small_is_named_with_its_least() -> None:
    with pytest.raises(Infeasible) as caught:
        solver.solve(replace(two_slots(), maximums={"memory": 100.0, "latency": 1.5}))
    assert str(caught.value) == "a limit that cannot be met: latency has maximum 1.5 and is 2 at the least"
    assert (caught.value.budgets, caught.value.least, caught.value.together) == (("latency",), {"latency": 2}, {})


def test_two_budgets_that_conflict_are_named_with_what_each_leaves_the_other() -> None:
    with pytest.raises(Infeasible) as caught:
        solver.solve(replace(two_slots(), maximums={"latency": 9.0, "memory": 9.0}))
    assert str(caught.value) == (
        "limits that cannot be met together: latency has maximum 9 and is 2 at the least (18 while the other limits "
        "named here hold); memory has maximum 9 and is 2 at the least (18 while the other limits named here hold)"
    )
    assert caught.value.budgets == ("latency", "memory")
    assert caught.value.together == {"latency": 18, "memory": 18}


def test_a_minimum_is_told_by_the_most_it_can_be() -> None:
    with pytest.raises(Infeasible, match="memory has minimum 20 and is 18 at the most") as caught:
        solver.solve(replace(two_slots(), minimums={"memory": 20.0}))
    assert caught.value.budgets == ("minimum memory",)


def test_an_infeasible_crosses_a_process_whole() -> None:
    with pytest.raises(Infeasible) as caught:
        solver.solve(replace(two_slots(), maximums={"latency": 9.0, "memory": 9.0}))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), vars(copy)) == (str(caught.value), vars(caught.value))


def test_slots_no_option_covers_are_named() -> None:
    options = tuple(option for option in library(4, 2, 0).options if option.first not in (2, 5) and option.span == 1)
    with pytest.raises(Infeasible, match=r"no option covers slots 2, 5$"):
        solver.solve(Problem(8, options, {}))


def test_slots_no_options_tile_are_named() -> None:
    options = (Option(0, 1, "x", 0, {}), Option(1, 2, "y", 0, {}), Option(2, 2, "z", 0, {}), Option(4, 1, "x", 0, {}))
    with pytest.raises(Infeasible, match=r"do not tile slots 2\.\.3"):
        solver.solve(Problem(5, options, {}))


def tampered(solution: Solution) -> Iterator[tuple[Solution, str]]:
    first, *rest = solution.options
    better = replace(first, score=first.score - 1)
    yield replace(solution, score=solution.score - 0.01), "says its score"
    yield replace(solution, costs={**solution.costs, "latency": 0.0}), "says its latency"
    yield replace(solution, costs={"latency": solution.costs["latency"]}), "has costs"
    yield replace(solution, options=tuple(rest)), "does not start at slot 0"
    yield replace(solution, options=solution.options[:-1]), "covers"
    yield replace(solution, options=(first, *solution.options)), "does not start"
    yield replace(solution, options=(better, *rest)), "not an option of the problem"
    yield replace(solution, bound=solution.score + 1), "bound"
    yield replace(solution, bound=math.nan), "bound"
    yield replace(solution, gap=0.5), "gap"
    yield replace(solution, bound=solution.score / 2, gap=0.5), "is not optimal"
    yield replace(solution, status="feasible"), "is not feasible"


def test_verify_catches_a_tampered_solution() -> None:
    problem = library(layers=6, names=4, seed=9)
    solution = solver.solve(problem)
    verify(problem, solution)
    for wrong, why in tampered(solution):
        with pytest.raises(ValueError, match=why):
            verify(problem, wrong)
    with pytest.raises(ValueError, match=r"latency is .* over the maximum"):
        verify(replace(problem, maximums={"latency": solution.costs["latency"] * (1 - 1e-6)}), solution)
    with pytest.raises(ValueError, match=r"memory is .* under the minimum"):
        verify(replace(problem, minimums={"memory": solution.costs["memory"] * (1 + 1e-6)}), solution)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        (Option(1, 1, "ffn256", math.nan, {"a": 1.0}), "ffn256 at slot 1 has score nan"),
        (Option(1, 1, "ffn256", None, {"a": 1.0}), "ffn256 at slot 1 has score None"),  # type: ignore[arg-type]
        (Option(1, 1, "ffn256", 0.0, {"a": math.inf}), "ffn256 at slot 1 has cost a = inf"),
        (Option(1, 1, "ffn256", 0.0, {}), "ffn256 at slot 1 has no cost 'a'"),
        (Option(0, 1, "kv8", 1.0, {"a": 1.0}), "kv8 at slot 0 stands twice"),
        (Option(1, 2, "skip+skip", 0.0, {"a": 1.0}), r"skip\+skip at slots 1\.\.2 is not within slots 0\.\.1"),
        (Option(-1, 1, "kv8", 0.0, {"a": 1.0}), "not within"),
        (Option(1, 0, "kv8", 0.0, {"a": 1.0}), "not within"),
    ],
)
def test_an_ill_posed_option_is_named(option: Option, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Problem(2, (Option(0, 1, "kv8", 0.0, {"a": 1.0}), option), {})


@pytest.mark.parametrize(
    ("maximums", "why"), [({"b": 1.0}, "limit on b, a cost no option has"), ({"a": math.nan}, "limit on a is nan")]
)
def test_an_ill_posed_limit_is_named(maximums: dict[str, float], why: str) -> None:
    options = (Option(0, 1, "kv8", 0.0, {"a": 1.0}),)
    with pytest.raises(ValueError, match=why):
        Problem(1, options, maximums)
    with pytest.raises(ValueError, match=why.replace("limit on", "limit on minimum")):
        Problem(1, options, {}, maximums)
