"""The description of a search's answer: how good, proven for which limits, and why there is none."""

import json
import math
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import cast

import pytest
from searches import started, stop_group, wait_for
from stored import add_measured, add_search, add_trial

from blocklib.block import Choice
from db import models
from db.store import Store
from nas.cli import main
from nas.cli import solve as cli_solve
from nas.cli.printed import print_alternatives, print_trial, print_trials
from nas.compare.strategies import StrategyResult
from nas.errors import BudgetNotMetError
from nas.job.units import parse_budget
from nas.solve.effort import said
from nas.solve.explain import Explained, explained
from nas.solve.front import front_of
from nas.solve.pool import MOST, Alternative, Wanted, alternatives
from nas.solve.solve import BY_EVALUATION, Measured, measured, solve, trial_row
from nas.stages.contest import Contest
from nas.stages.real_values import Reality
from nas.trial_query import TrialList, TrialQuery
from solvers.problem import Solution


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "nas.db")


@pytest.fixture
def known(store: Store, tmp_path: Path) -> Measured:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    return measured(store, search)


def proven_to(known: Measured, solution: Solution, share: float) -> Solution:
    """The same with a bound so far below its score."""
    return Solution.of(known.problem(()), solution.options, (1 - share) * solution.score, 1.0, solution.solver)


def test_a_score_that_is_none_is_named(store: Store, known: Measured) -> None:
    with pytest.raises(ValueError, match="'choice' is not a score to minimise; known: kl, lm_loss"):
        measured(store, known.search, "choice")
    assert measured(store, known.search, "lm_loss").metric == "lm_loss"


def test_a_front_over_what_the_scenario_has_none_of_is_refused(known: Measured) -> None:
    with pytest.raises(ValueError, match="decode: the scenario generates 1 token, so there is no decode"):
        front_of(known, "decode", (), 5)


def test_a_front_under_limits_out_of_reach_is_told_in_the_users_units(known: Measured) -> None:
    with pytest.raises(
        BudgetNotMetError, match=r"memory 1\.00 B: the least reachable is [\d.]+ KiB \([\d.]+% of the parent"
    ):
        front_of(known, "latency", parse_budget("memory=1B"), 5)


def test_the_parents_own_architecture_scores_nothing_and_costs_what_the_parent_costs(known: Measured) -> None:
    solution = solve(known, ())
    assert str(known.architecture(solution.options)) == known.search.parent_architecture
    assert solution.score == 0.0
    last = front_of(known, "latency", (), 5)[-1]
    assert (last.score, last.of_parent) == (0.0, pytest.approx(1.0))


def test_points_of_a_front_say_what_is_proven_of_them(known: Measured) -> None:
    points = front_of(known, "latency", (), 5)
    assert {point.status for point in points} == {"optimal"}
    assert max(point.gap for point in points) <= 1e-6


def test_what_took_no_time_is_on_every_front_but_that_of_throughput(known: Measured) -> None:
    """A clock on a busy machine may see no time in any part of a small child."""
    known = replace(known, fixed=replace(known.fixed, prefill_s=0.0))
    cheapest = front_of(known, "latency", (), 5)[0]
    assert cheapest.cost == 0.0
    (only,) = front_of(known, "parameters", parse_budget("latency=1ns"), 5)
    assert only.architecture == cheapest.architecture
    fastest = front_of(known, "throughput", (), 5)[0]
    assert math.isfinite(fastest.cost)
    assert fastest.architecture != cheapest.architecture


def test_of_two_limits_on_one_cost_the_looser_is_worth_nothing(known: Measured) -> None:
    budget = parse_budget("throughput=100%,latency=60%")
    throughput, latency = explained(known, budget, solve(known, budget)).prices
    assert (throughput.metric, throughput.buys) == ("throughput", 0.0)
    assert latency.buys > 0


def test_of_two_limits_on_one_cost_only_the_tighter_is_at_fault(known: Measured) -> None:
    with pytest.raises(BudgetNotMetError) as told:
        solve(known, parse_budget("throughput=100%,latency=1%"))
    assert "latency" in str(told.value)
    assert "throughput" not in str(told.value)


def test_a_better_proof_of_the_same_answer_is_kept_and_a_worse_one_is_not(store: Store, known: Measured) -> None:
    budget = parse_budget("latency=60%")
    solution = solve(known, budget)
    rough, exact = (proven_to(known, solution, share) for share in (0.1, 0.0))

    def again(found: Solution) -> models.TrialRow:
        return store.add_trial(trial_row(known, found, budget, None))

    assert (again(rough).status, again(rough).gap) == ("feasible", pytest.approx(0.1))
    first = again(exact)
    assert (first.status, first.gap, first.bound) == ("optimal", 0.0, solution.score)
    assert again(rough).gap == 0.0
    assert len(store.trials()) == 1


@pytest.mark.parametrize("solver", BY_EVALUATION)
def test_what_was_chosen_by_more_than_its_sum_of_scores_is_not_called_optimal(known: Measured, solver: str) -> None:
    """Though it has the least sum of all."""
    budget = parse_budget("latency=60%")
    row = trial_row(known, replace(solve(known, budget), solver=solver), budget, None)
    assert (row.status, row.bound, row.gap) == ("evaluated", None, None)


@pytest.mark.parametrize("asked", [["latency=60%", "memory=70%"], ["latency=60%,memory=70%"]])
def test_every_budget_of_a_command_counts(
    store: Store, known: Measured, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli_solve.pareto(known.search.name, "parameters", asked, 5, None, store.url, True)
    alike = front_of(known, "parameters", parse_budget("latency=60%,memory=70%"), 5)
    assert [point["cost"] for point in json.loads(capsys.readouterr().out)] == [point.cost for point in alike]
    assert alike != front_of(known, "parameters", parse_budget("memory=70%"), 5)


def test_brackets_in_what_is_printed_stay(
    store: Store, known: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = add_trial(store, known.search, "latency=60%", None)
    other = Store.open(tmp_path / "other.db")
    search = add_search(other, tmp_path, name="llama [b:x:4]")
    add_measured(other, search)
    print_trials(TrialList((trial,), {search.id: search}, ""), TrialQuery())
    print_trial(search, trial)
    print_trials(TrialList((), {}, "/data/[old]/nas.db"), TrialQuery())
    printed = capsys.readouterr().out
    assert printed.count("llama [b:x:4]") == 2
    assert "/data/[old]/nas.db" in printed


def test_how_an_answer_comes_along_is_told_in_its_own_sign() -> None:
    assert said(math.inf, -3.0) == "no answer yet"
    assert said(0.5, 0.4) == "the best so far 0.5, proven to 2.0e-01 of the best there is"
    assert said(-412.0, -515.0, maximise=True) == "the best so far 412, proven to 2.0e-01 of the best there is"


def test_a_child_that_was_never_healed_has_no_healed_kl(store: Store, known: Measured) -> None:
    trial = store.update_trial(add_trial(store, known.search, "latency=60%", 1.0).id, kl_whole=0.5, heal_tokens=0)
    line = StrategyResult("MIP", trial=trial)
    assert (trial.kl is None, line.healed_kl) == (False, None)
    assert StrategyResult("MIP", trial=store.update_trial(trial.id, heal_tokens=2048)).healed_kl == trial.kl


class FailsAtTheSecond:
    """Whole models, of which a worker runs one and the next ends it."""

    def kl(self, architectures: Sequence[str]) -> Iterator[tuple[str, float]]:
        yield architectures[1], 0.125
        raise MemoryError("L3.ffn=skip")


def test_what_was_measured_whole_before_a_failure_is_kept(store: Store, known: Measured) -> None:
    budgets = [parse_budget(f"latency={share}%") for share in (80, 60, 50)]
    contest = Contest(store, known, budgets[0], cast(Reality, FailsAtTheSecond()), 9)
    solutions = [solve(known, budget) for budget in budgets]
    with pytest.raises(MemoryError):
        contest.trials(solutions)
    (trial,) = store.trials()
    assert (trial.kl_whole, trial.score) == (0.125, solutions[1].score)


def subblocks(trial: models.TrialRow) -> list[str]:
    """The name of each attention and FFN of it; a run over several is each of them."""
    found = []
    for choice in map(Choice.parse, trial.details["choices"]):
        parts = str(choice.what).split("+")
        found += parts if len(parts) == choice.span else choice.span * [str(choice)]
    return found


def test_several_answers_to_one_budget_are_trials(store: Store, known: Measured) -> None:
    """Each as far from all before as asked, no better than they, and said to be so far from the best."""
    budget = parse_budget("latency=60%")
    found = alternatives(store, known, budget, Wanted(4, 3))
    assert found.ended == "enough"
    trials = [one.trial for one in found.found]
    assert [trial.id for trial in store.trials()] == [trial.id for trial in trials] == [1, 2, 3, 4]
    assert trials[0].score == solve(known, budget).score
    slots = [subblocks(trial) for trial in trials]
    for one, other in combinations(range(4), 2):
        assert trials[one].score <= trials[other].score
        assert sum(a != b for a, b in zip(slots[one], slots[other], strict=True)) >= 3
    assert [one.unlike for one in found.found] == [sum(a != b for a, b in zip(slots[0], s, strict=True)) for s in slots]
    assert {trial.bound for trial in trials} == {trials[0].bound}
    assert [trial.status for trial in trials] == ["optimal", "feasible", "feasible", "feasible"]
    assert trials[1].gap == pytest.approx(1 - trials[0].score / trials[1].score, abs=1e-6)
    assert all(one.solution.gap <= 1e-6 for one in found.found)
    assert [trial.solver for trial in trials] == ["mip", "pool", "pool", "pool"]
    assert Explained.of(trials[0]) is not None
    again = alternatives(store, known, budget, Wanted(4, 3))
    assert [one.trial.id for one in again.found] == [1, 2, 3, 4]


def test_answers_so_far_apart_as_there_are_none(
    store: Store, known: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="--apart is 9; the model has 8 subblocks, so it is between 1 and 8"):
        alternatives(store, known, (), Wanted(2, 9))
    with pytest.raises(BudgetNotMetError, match="the least reachable is"):
        alternatives(store, known, parse_budget("latency=1%"), Wanted(2))
    cli_solve.pool(known.search.name, ["latency=60%"], 9, 8, db=store.url)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(store.trials())} of 9: there are no others so far apart"
    cli_solve.pool(known.search.name, count=2, db=store.url, as_json=True)
    told = json.loads(capsys.readouterr().out)
    first, second = told["found"]
    assert told["timed_out"] is False
    assert (first["unlike"], second["unlike"] >= 1, first["trial"]["budget"]) == (0, True, {"latency": "60%"})


def test_where_no_trial_matches_the_database_is_not_called_empty(
    store: Store, known: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    for where, told in ((None, "no trials yet in "), ("kl < 0.001", "no trials match in ")):
        main.trials(None, where=where, db=store.url)
        assert capsys.readouterr().out.startswith(told)


def test_a_proof_for_other_limits_than_the_budget_says_so(store: Store, known: Measured) -> None:
    asked, moved = parse_budget("latency=60%"), parse_budget("latency=57.5%")
    solution = solve(known, moved)
    trial = store.add_trial(trial_row(known, solution, asked, None, moved))
    assert (trial.budget, trial.details["solved_for"]) == ({"latency": "60%"}, {"latency": "57.5%"})
    # Proven for the budget itself, if only to a tenth, it is.
    trial = store.add_trial(trial_row(known, proven_to(known, solution, 0.1), asked, None, asked))
    assert "solved_for" not in trial.details
    assert trial.gap == pytest.approx(0.1)
    trial = store.add_trial(trial_row(known, solution, asked, None, moved))
    assert "solved_for" not in trial.details


# --- nas pool -------------------------------------------------------------------------------------------------------


def test_no_more_answers_are_looked_for_than_anybody_reads(store: Store, known: Measured) -> None:
    for count in (MOST + 1, 1_000_000, 10**26):
        with pytest.raises(ValueError, match=rf"--count is {count}; the most is {MOST}: each answer"):
            cli_solve.pool(known.search.name, count=count, db=store.url)
        with pytest.raises(ValueError, match="the most is"):
            alternatives(store, known, (), Wanted(count))
    assert store.trials() == []


def test_answers_are_counted_from_the_first_second_on(
    store: Store, known: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    cli_solve.pool(known.search.name, count=3, total_time=50, db=store.url)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "looking for up to 3 architectures, 50 s at most; Ctrl-C keeps those found"
    assert re.match(r"1 of 3 found, \d+ s: score \d\.\d{4}$", second)
    cli_solve.pool(known.search.name, count=3, db=store.url, as_json=True)
    told = capsys.readouterr()
    assert len(json.loads(told.out)["found"]) == 3
    assert told.err.startswith("looking for up to 3 architectures, 600 s at most")


def test_answers_stop_after_the_time_for_all(store: Store, known: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    def linger(answer: Alternative) -> None:
        time.sleep(3 if len(store.trials()) == 2 else 0)

    found = alternatives(store, known, (), Wanted(MOST, total_s=3), tell=linger)
    assert found.ended == "time"
    assert [one.trial.id for one in found.found] == [trial.id for trial in store.trials()]
    assert len(found.found) <= 2
    print_alternatives(known.search, found, MOST, as_json=False)
    assert capsys.readouterr().out.endswith(f"{len(found.found)} of {MOST}: no other was found in time\n")
    print_alternatives(known.search, found, MOST, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["ended"], told["timed_out"]) == ("time", True)


def test_what_was_found_before_ctrl_c_is_kept_and_told(
    store: Store, known: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(answer: Alternative) -> None:
        if answer.trial.id == 3:
            raise KeyboardInterrupt

    found = alternatives(store, known, (), Wanted(9), tell=stop)
    assert (len(found.found), found.ended, len(store.trials())) == (3, "interrupted", 3)
    print_alternatives(known.search, found, 9, as_json=False)
    assert capsys.readouterr().out.endswith("3 of 9: interrupted; the ones found are kept\n")


def test_ctrl_c_ends_a_pool_with_its_answers(store: Store, known: Measured, tmp_path: Path) -> None:
    """As a user stops it: the answers are printed, and it ends as shells want it to."""
    running = started(tmp_path, "pool", known.search.name, "--count", str(MOST), "--budget", "latency=70%")
    read = wait_for(running, "1 of 1000 found")
    assert read.startswith("looking for up to 1000 architectures, 600 s at most")
    rest = stop_group(running, signal.SIGINT)
    assert running.returncode == 130
    assert "Traceback" not in rest
    kept = len(store.trials())
    assert f"{kept} of 1000: interrupted; the ones found are kept" in rest
