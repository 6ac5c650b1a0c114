"""The parts that make the exact solver fast, against exhaustive search: prices, exchanges, labels, MIP solvers."""

import math
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_solvers import hard, least_score, library, meets, problems, score, tilings

from benchmarks.solver import instance
from solvers.errors import Infeasible
from solvers.exact import conflict, meet_in_the_middle, minimise, solver
from solvers.exact.conflict import settled
from solvers.exact.labels import CrowdedError
from solvers.exact.lagrangian import dual
from solvers.exact.local_search import improved
from solvers.exact.meet_in_the_middle import MergedError, meet
from solvers.exact.minimise import Start
from solvers.exact.program import Answer, Program, Row
from solvers.exact.pulp_model import run
from solvers.exact.scaled import Relaxation, Scaled
from solvers.exact.search_width import over_best, reach
from solvers.exact.settings import Engine, Settings
from solvers.exact.shortest_path import Line, scores_of
from solvers.problem import Option, Problem


def program_of(problem: Problem) -> Program:
    return Program.of(problem, scores_of(problem), problem.limits)


def right(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Every tiling within the limits, by its options' places."""
    place = {option.key: index for index, option in enumerate(problem.options)}
    for options in tilings(problem):
        if meets(options, problem.limits):
            yield tuple(place[option.key] for option in options)


def rows_of(program: Program) -> tuple[np.ndarray, np.ndarray]:
    columns = [row.values for row in program.rows]
    values = np.stack(columns, axis=1) if columns else np.zeros((len(program.weights), 0))
    return values, np.array([row.most + row.tolerance for row in program.rows])


@given(problems())
def test_steps_of_a_line_are_its_options_by_their_slots(problem: Problem) -> None:
    line = Line.of(problem.slots, problem.options)
    weights, nothing = scores_of(problem), math.inf
    whole = min(map(score, tilings(problem)), default=nothing)
    assert line.up_to(weights)[-1] == line.onward(weights)[0] == pytest.approx(whole)
    through = line.through(weights)
    for index, option in enumerate(problem.options):
        of_it = [score(options) for options in tilings(problem) if option in options]
        assert through[index] == pytest.approx(min(of_it, default=nothing))
    if whole < nothing:
        chosen = line.least(weights)
        assert weights[chosen].sum() == pytest.approx(whole)
        assert [line.steps.of_option[index] for index in chosen] == sorted(
            line.steps.of_option[index] for index in chosen
        )


@given(problems())
def test_prices_prove_a_bound_and_what_an_option_adds_to_it(problem: Problem) -> None:
    if not any(True for _ in tilings(problem)):
        return
    program = program_of(problem)
    found = dual(program)
    assert (found.prices_R >= 0).all()
    for chosen in right(problem):
        weight = program.weight(chosen)
        assert found.bound <= weight + 1e-9 * max(1, abs(weight))
        for index in chosen:
            assert found.bound + found.slack_O[index] <= weight + 1e-9 * max(1, abs(weight))


def test_prices_are_what_one_more_unit_of_a_limit_is_worth() -> None:
    problem = library(layers=20, names=6, seed=7)
    program = program_of(problem)
    found = dual(program)
    assert (found.prices_R > 0).any()
    for place, cost in enumerate(problem.maximums):
        more = {**problem.maximums, cost: problem.maximums[cost] * 1.0001}
        wider = dual(program_of(replace(problem, maximums=more)))
        worth = (found.bound - wider.bound) / (problem.maximums[cost] * 0.0001)
        assert worth == pytest.approx(found.prices_R[place], rel=0.02, abs=1e-6)


def test_prices_known_beforehand_save_their_search() -> None:
    program = program_of(library(layers=40, names=8, seed=1))
    cold = dual(program)
    warm = dual(program, cold.prices_R.tolist())
    assert warm.bound == pytest.approx(cold.bound, rel=1e-6)
    assert len(warm.seen) < len(cold.seen)


def test_the_search_for_prices_ends_where_the_planes_tell_no_more_apart() -> None:
    """Here the best bound is so small a share of the largest weight that the linear program's tolerance was all of what
    was left, and the highest point stayed for four hundred rounds."""
    assert len(dual(program_of(instance("independent", 126, 200, 3, seed=3))).seen) < 60


def test_a_bound_without_end_says_that_nothing_fits() -> None:
    problem = library(layers=8, names=4, seed=2)
    program = program_of(replace(problem, maximums={}, minimums={"latency": 1e3}))
    assert dual(program).bound > program.weights.sum()
    assert minimise.minimise(program, Settings(0.0)).outcome == "infeasible"


@given(problems(), st.data())
def test_exchanges_stay_within_the_limits_and_only_lighten(problem: Problem, data: st.DataObject) -> None:
    everything = list(tilings(problem))
    if not everything:
        return
    program, place = program_of(problem), {option.key: index for index, option in enumerate(problem.options)}
    options = data.draw(st.sampled_from(everything))
    given_tiling = np.array([place[option.key] for option in options])
    values, most = rows_of(program)
    found = improved(program, values, most, given_tiling)
    if found is None:
        assert not meets(options, problem.limits)
        return
    assert (values[found].sum(0) <= most).all()
    if meets(options, problem.limits):
        assert program.weights[found].sum() <= program.weights[given_tiling].sum()


def met(program: Program, prices: np.ndarray, distance: float, further: float, merging: bool) -> list[np.ndarray]:
    found = list(meet(Relaxation(program, Scaled.of(program), prices), distance, further, merging))
    return [tiling for tiling in found if tiling is not None]


@given(problems(), st.floats(0, 3), st.floats(1, 3), st.booleans(), st.integers(0, 9), st.booleans())
def test_what_meets_is_the_lightest_within_reach(
    problem: Problem, share: float, further: float, merging: bool, seed: int, many: bool
) -> None:
    if not any(True for _ in tilings(problem)):
        return
    program = program_of(problem)
    scaled = Scaled.of(program)
    prices = np.random.default_rng(seed).uniform(0, 2, len(program.rows))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("solvers.exact.labels._MANY", 1 if many else 10**9)
        patched.setattr("solvers.exact.labels._BLOCK", 3)
        patched.setattr("solvers.exact.meet_in_the_middle._BLOCK", 2)
        patched.setattr("solvers.exact.meet_in_the_middle._PAIRS", 2)
        try:
            found = met(program, prices, share, further * share, merging)
        except MergedError:
            assert merging
            return
    weights = [program.weight(tiling) for tiling in found]
    assert weights == sorted(weights, reverse=True)
    assert all(program.holds(tiling) for tiling in found)
    best = least_score(problem)
    reach = (scaled.bound(prices) + share) * scaled.scale
    if best is not None and best < reach - 1e-9:
        assert weights[-1] == pytest.approx(best, abs=1e-9)


@given(problems(), st.integers(1, 200), st.floats(1e-3, 5))
def test_a_reach_is_what_so_many_labels_can_afford(problem: Problem, labels: int, wanted: float) -> None:
    if not any(True for _ in tilings(problem)):
        return
    scaled = Scaled.of(program_of(problem))
    charged = scaled.charged(np.zeros(len(scaled.most_R)))
    near = reach(scaled.line, charged, wanted, labels)
    assert 0 <= near <= wanted
    over = over_best(scaled.line, charged)
    best = float(scaled.line.up_to(charged)[-1])
    assert (over >= -1e-12).all()
    if near == wanted:
        place = {option.key: index for index, option in enumerate(problem.options)}
        sums = [charged[[place[option.key] for option in options]].sum() for options in tilings(problem)]
        assert sum(one < best + wanted - 1e-9 for one in sums) <= labels**2


def test_labels_that_cannot_be_held_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(library(layers=20, names=6, seed=7))
    best = minimise.minimise(program)
    monkeypatch.setattr("solvers.exact.labels.MOST", 200)
    scaled = Scaled.of(program)
    with pytest.raises(CrowdedError):
        met(program, scaled.prices(dual(program).prices_R), 1.0, 1.0, False)
    crowded = minimise.minimise(program)
    assert program.weight(crowded.chosen) == pytest.approx(program.weight(best.chosen), rel=2e-6)
    assert crowded.bound == pytest.approx(program.weight(crowded.chosen), rel=2e-6)


def test_labels_of_the_same_sums_are_one() -> None:
    """Every layer costs the same: what counts is which options are taken, not where."""
    rng = np.random.default_rng(0)
    options = [
        Option(slot, 1, f"o{name}", float(rng.uniform(0, 1) + 3 - name), {"a": float(name), "b": float(name * name)})
        for slot in range(24)
        for name in range(4)
    ]
    problem = Problem(24, tuple(options), {"a": 40.0, "b": 80.0})
    program = program_of(problem)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("solvers.exact.labels._MANY", 1)
        scaled = Scaled.of(program)
        prices = scaled.prices(dual(program).prices_R)
        apart, merged = (met(program, prices, 0.3, 0.3, merging)[-1] for merging in (False, True))
    assert program.weight(apart) == pytest.approx(program.weight(merged), abs=1e-12)


@pytest.mark.filterwarnings("ignore:PULP_CBC_CMD")
@pytest.mark.parametrize("engine", ["highs", "cbc"])
@given(problem=problems())
def test_mip_solvers_agree_with_exhaustive_search(engine: Engine, problem: Problem) -> None:
    if not any(True for _ in tilings(problem)):
        return
    best = least_score(problem)
    answer = run(program_of(problem), Settings(1e-9, 60, engine))
    if best is None:
        assert answer.outcome == "infeasible"
    else:
        assert program_of(problem).weight(answer.chosen) == pytest.approx(best, abs=1e-6)
        assert answer.bound <= best + 1e-6


@pytest.mark.filterwarnings("ignore:PULP_CBC_CMD")
@pytest.mark.parametrize("engine", ["highs", "cbc"])
def test_what_labels_leave_open_a_mip_solver_settles(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solvers.exact.minimise._LAST", 0)
    program = program_of(library(layers=20, names=6, seed=7))
    answer = minimise.minimise(program, Settings(engine=engine))
    monkeypatch.undo()
    assert program.weight(answer.chosen) == pytest.approx(program.weight(minimise.minimise(program).chosen), rel=2e-6)
    assert answer.bound == pytest.approx(program.weight(answer.chosen), rel=2e-6)


def test_progress_is_told_and_what_is_known_helps() -> None:
    problem = library(layers=30, names=8, seed=3)
    program, told = program_of(problem), []
    answer = minimise.minimise(program, Settings(0.0, progress=lambda best, bound: told.append((best, bound))))
    assert told
    assert all(bound <= best for best, bound in told)
    assert [best for best, _ in told] == sorted((best for best, _ in told), reverse=True)
    assert [bound for _, bound in told] == sorted(bound for _, bound in told)
    assert told[-1][0] == program.weight(answer.chosen)
    again = minimise.minimise(program, Settings(0.0), Start(answer.prices, [answer.chosen]))
    assert again.chosen == answer.chosen


def test_progress_is_told_while_a_mip_solver_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solvers.exact.minimise._LAST", 0)
    told: list[tuple[float, float]] = []
    solver.solve(hard(), Settings(1e-4, 5, progress=lambda best, bound: told.append((best, bound))))
    assert len(told) > 2
    assert all(bound <= best for best, bound in told)


def test_an_answer_comes_with_a_gap_at_once() -> None:
    solution = solver.solve(hard(), Settings(0.01, 30))
    assert solution.gap <= 0.01


def out_of_reach(slots: int = 40) -> Problem:
    """Sums of even numbers that are to be odd: no bound tells that none is."""
    rng = random.Random(0)
    options = [
        Option(slot, 1, f"o{name}", rng.random(), {"a": 2.0 * rng.randrange(10**6)})
        for slot in range(slots)
        for name in range(10)
    ]
    odd = 2.0 * slots * 500_000 + 1
    return Problem(slots, tuple(options), {"a": odd}, {"a": odd})


def test_a_time_out_without_a_solution_says_so() -> None:
    with pytest.raises(TimeoutError, match=r"in 1e-09 s no solution was found"):
        solver.solve(out_of_reach(), Settings(time_limit_s=1e-9))


def test_without_time_to_find_the_limits_at_fault_all_are_named() -> None:
    """There are three limits; two of them can be met alone, and both are at fault."""
    problem = out_of_reach()
    with pytest.raises(Infeasible) as caught:
        settled(problem, Answer("infeasible"), Settings(time_limit_s=1e-9))
    assert (caught.value.budgets, caught.value.is_smallest) == (("a", "minimum a"), True)
    options = tuple(replace(option, costs={**option.costs, "b": 1.0}) for option in problem.options)
    problem = Problem(problem.slots, options, {"b": 100.0, **problem.maximums}, problem.minimums)
    with pytest.raises(Infeasible, match=r"the smallest set of limits at fault was not found in 1e-09 s") as caught:
        settled(problem, Answer("infeasible"), Settings(time_limit_s=1e-9))
    assert (caught.value.budgets, caught.value.is_smallest) == (("b", "a", "minimum a"), False)


def test_without_time_for_it_no_least_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value that another limit leaves is the least only if that is proven."""
    options = tuple(
        Option(slot, 1, name, 0.0, {"a": a, "b": 3.0 - a}) for slot in range(2) for name, a in (("x", 1.0), ("y", 2.0))
    )
    problem = Problem(2, options, {"a": 2.5, "b": 2.5})
    with pytest.raises(Infeasible) as caught:
        solver.solve(problem)
    assert caught.value.together == {"a": 4.0, "b": 4.0}

    def unproven(*asked: Any, **also: Any) -> Answer:
        answer = minimise.minimise(*asked, **also)
        return replace(answer, bound=answer.bound - 1)

    monkeypatch.setattr(conflict, "minimise", unproven)
    with pytest.raises(Infeasible) as caught:
        solver.solve(problem)
    assert (caught.value.budgets, caught.value.together) == (("a", "b"), {})


@pytest.mark.parametrize("seed", range(60))
def test_an_option_of_no_tiling_within_the_limits_however_heavy_changes_nothing(seed: int) -> None:
    """Either neighbour of it passes one of the limits, so that neither limit alone rules it out."""
    rng = random.Random(seed)

    def option(first: int, span: int, name: str, score: float, **costs: float) -> Option:
        return Option(first, span, name, score, {"a": span * rng.random(), "b": span * rng.random()} | costs)

    options = [option(slot, 1, f"o{name}", rng.random()) for slot in range(2, 10) for name in range(4)]
    options += [option(0, 2, f"o{name}", rng.random()) for name in range(2)]
    most = rng.uniform(2.2, 3.4)
    light = Problem(10, tuple(options), {"a": most, "b": most})
    options.append(option(0, 1, "heavy", 1e4, a=0.1, b=0.1))
    options += [option(1, 1, "wide", 0.1, a=1e3, b=0.0), option(1, 1, "long", 0.1, a=0.0, b=1e3)]
    found = []
    for problem in (light, replace(light, options=tuple(options))):
        try:
            found.append(solver.solve(problem).score)
        except Infeasible:
            found.append(math.inf)
    assert found[0] == pytest.approx(found[1])


def test_a_search_stops_at_the_deadline_and_claims_no_more_than_it_proved() -> None:
    program = program_of(hard())
    began = time.monotonic()
    answer = minimise.minimise(program, Settings(0.0, 0.5))
    assert time.monotonic() - began < 10
    assert answer.outcome == "solved"
    assert answer.bound < program.weight(answer.chosen)


@pytest.mark.parametrize("outlier", [1e6, 1e9, 1e12])
def test_what_can_never_be_chosen_blurs_no_mip_solver(outlier: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An impossible cost, as tables write it, at every slot; and no labels to do without the solver."""
    problem = library(layers=3, names=4, seed=5)
    impossible = [Option(slot, 1, "never", 0.0, {"latency": outlier, "memory": outlier}) for slot in range(6)]
    best = least_score(problem)
    monkeypatch.setattr("solvers.exact.minimise._LAST", 0)
    found = solver.solve(replace(problem, options=(*problem.options, *impossible)))
    assert found.score == pytest.approx(best, rel=1e-9)
    assert found.status == "optimal"


def filling(layers: int, names: int, share: float) -> Program:
    """The objective is the limited cost: a tiling is as near to the bound as it is full, and billions nearly are."""
    costs = np.random.default_rng(0).uniform(0, 1, (layers, names))
    costs[:, 0], costs[:, -1] = 1, 0
    firsts, values = np.repeat(np.arange(layers), names), costs.ravel()
    return Program(Line(layers, firsts, firsts + 1), -values, (Row(values, share * layers),))


def test_exchanges_fill_a_limit_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among options of every slot, though those of a few would be near enough to the bound by themselves."""
    monkeypatch.setattr(minimise, "meet", lambda *_: pytest.fail("exchanges should have settled it"))
    program = filling(12, 130, 0.3)
    answer = minimise.minimise(program, Settings(1e-3))
    assert answer.outcome == "solved"
    assert program.holds(answer.chosen)
    assert program.weight(answer.chosen) <= 0.999 * -program.rows[0].most


def test_a_join_tells_what_it_found_before_it_has_looked_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    within = meet_in_the_middle._Grid._within
    monkeypatch.setattr(
        meet_in_the_middle._Grid,
        "_within",
        lambda grid, *given: looked_at.append(len(given[2])) or within(grid, *given),
    )
    program = filling(6, 14, 0.5)
    near = meet(Relaxation.of(program, dual(program).prices_R), 0.2, 0.2, True)
    first = next(tiling for tiling in near if tiling is not None)
    assert program.holds(first)
    # Pairs of half tilings, of which there are as many as tilings: 14^6.
    assert 0 < sum(looked_at) <= 2 * meet_in_the_middle._PAIRS
