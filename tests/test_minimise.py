"""What makes the exact solver fast, part by part, against exhaustive search: prices, exchanges, labels, MIP solvers."""

import math
import random
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_solvers import hard, least_score, library, meets, problems, score, tilings

from solvers import minimise, mip
from solvers.conflict import settled
from solvers.dual import dual
from solvers.labels import label
from solvers.line import Line, scores_of
from solvers.minimise import Start
from solvers.problem import Infeasible, Option, Problem
from solvers.program import Answer, Program
from solvers.pulp_model import Engine, run
from solvers.swaps import improved


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


def test_a_bound_without_end_says_that_nothing_fits() -> None:
    problem = library(layers=8, names=4, seed=2)
    program = program_of(replace(problem, maximums={}, minimums={"latency": 1e3}))
    assert dual(program).bound > program.weights.sum()
    assert minimise.minimise(program, 0.0).outcome == "infeasible"


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


@given(problems(), st.integers(1, 40))
def test_labels_find_the_best_or_bound_what_they_left_behind(problem: Problem, width: int) -> None:
    if not any(True for _ in tilings(problem)):
        return
    program = program_of(problem)
    values, most = rows_of(program)
    scale = np.maximum(1e-30, np.abs(values).max(0, initial=0)) if len(most) else np.ones(0)
    prices = np.zeros((3, len(most)))
    prices[1:] = np.random.default_rng(0).uniform(0, 2, (2, len(most)))
    found = label(program, values / scale, most / scale, prices, math.inf, 1e-12, width)
    best = least_score(problem)
    if best is None:
        assert found.best is None
        return
    reached = math.inf if found.best is None else program.weight(found.best)
    assert reached >= best - 1e-9
    assert min(reached, found.bound) <= best + 1e-9
    if math.isinf(found.bound):
        assert reached == pytest.approx(best, abs=1e-9)


@pytest.mark.filterwarnings("ignore:PULP_CBC_CMD")
@pytest.mark.parametrize("engine", ["highs", "cbc"])
@given(problem=problems())
def test_mip_solvers_agree_with_exhaustive_search(engine: Engine, problem: Problem) -> None:
    if not any(True for _ in tilings(problem)):
        return
    best = least_score(problem)
    answer = run(program_of(problem), 1e-9, time.monotonic() + 60, engine)
    if best is None:
        assert answer.outcome == "infeasible"
    else:
        assert program_of(problem).weight(answer.chosen) == pytest.approx(best, abs=1e-6)
        assert answer.bound <= best + 1e-6


@pytest.mark.filterwarnings("ignore:PULP_CBC_CMD")
@pytest.mark.parametrize("engine", ["highs", "cbc"])
def test_what_labels_leave_open_a_mip_solver_settles(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solvers.minimise._WIDTHS", ())
    program = program_of(library(layers=20, names=6, seed=7))
    answer = minimise.minimise(program, 1e-6, engine=engine)
    monkeypatch.undo()
    assert program.weight(answer.chosen) == pytest.approx(
        program.weight(minimise.minimise(program, 1e-6).chosen), rel=2e-6
    )
    assert answer.bound == pytest.approx(program.weight(answer.chosen), rel=2e-6)


def test_progress_is_told_and_what_is_known_helps() -> None:
    problem = library(layers=30, names=8, seed=3)
    program, told = program_of(problem), []
    answer = minimise.minimise(program, 0.0, progress=lambda best, bound: told.append((best, bound)))
    assert told
    assert all(bound <= best for best, bound in told)
    assert [best for best, _ in told] == sorted((best for best, _ in told), reverse=True)
    assert [bound for _, bound in told] == sorted(bound for _, bound in told)
    assert told[-1][0] == program.weight(answer.chosen)
    again = minimise.minimise(program, 0.0, start=Start(answer.prices, [answer.chosen]))
    assert again.chosen == answer.chosen


def test_an_answer_comes_with_a_gap_at_once() -> None:
    solution = mip.solve(hard(), gap=0.01, time_limit_s=30)
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
        mip.solve(out_of_reach(), time_limit_s=1e-9)


def test_without_time_to_find_the_limits_at_fault_all_are_named() -> None:
    problem = out_of_reach()
    with pytest.raises(Infeasible, match=r"the smallest set of limits at fault was not found in 1e-09 s") as caught:
        settled(problem, Answer("infeasible"), time_limit_s=1e-9)
    assert caught.value.budgets == ("a", "minimum a")


def test_labels_stop_at_the_deadline_and_claim_nothing() -> None:
    program = program_of(hard())
    values, most = rows_of(program)
    found = label(program, values, most, np.zeros((1, len(most))), math.inf, 1e-9, 1000, time.monotonic())
    assert (found.best, found.bound) == (None, -math.inf)
    began = time.monotonic()
    answer = minimise.minimise(program, 0.0, 0.5)
    assert time.monotonic() - began < 10
    assert answer.outcome == "solved"
    assert answer.bound < program.weight(answer.chosen)


@pytest.mark.parametrize("outlier", [1e6, 1e9, 1e12])
def test_what_can_never_be_chosen_blurs_no_mip_solver(outlier: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An impossible cost, as tables write it, at every slot; and no labels to do without the solver."""
    problem = library(layers=3, names=4, seed=5)
    impossible = [Option(slot, 1, "never", 0.0, {"latency": outlier, "memory": outlier}) for slot in range(6)]
    best = least_score(problem)
    monkeypatch.setattr("solvers.minimise._WIDTHS", ())
    found = mip.solve(replace(problem, options=(*problem.options, *impossible)))
    assert found.score == pytest.approx(best, rel=1e-9)
    assert found.status == "optimal"
