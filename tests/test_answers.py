"""What a search's answer is said to be: how good, proven for which limits, and why there is none."""

from pathlib import Path

import pytest
from stored import add_measured, add_search

from db import models
from db.store import Store
from nas.explain import explained
from nas.front import front_of
from nas.solve import BudgetNotMet, Measured, kept, measured, solve, trial_row
from nas.units import parse_budget
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
    with pytest.raises(ValueError, match="'choice' is no score to minimise; known: kl, lm_loss"):
        measured(store, known.search, "choice")
    assert measured(store, known.search, "lm_loss").metric == "lm_loss"


def test_a_front_over_what_the_scenario_has_none_of_is_refused(known: Measured) -> None:
    with pytest.raises(ValueError, match="decode: the scenario generates 1 token, so there is no decode"):
        front_of(known, "decode", (), 5)


def test_a_front_under_limits_out_of_reach_is_told_in_the_users_units(known: Measured) -> None:
    with pytest.raises(
        BudgetNotMet, match=r"memory 1\.00 B: the least reachable is [\d.]+ KiB \([\d.]+% of the parent"
    ):
        front_of(known, "latency", parse_budget("memory=1B"), 5)


def test_points_of_a_front_say_what_is_proven_of_them(known: Measured) -> None:
    points = front_of(known, "latency", (), 5)
    assert {point.status for point in points} == {"optimal"}
    assert max(point.gap for point in points) <= 1e-6


def test_of_two_limits_on_one_cost_the_looser_is_worth_nothing(known: Measured) -> None:
    budget = parse_budget("throughput=100%,latency=60%")
    throughput, latency = explained(known, budget, solve(known, budget)).prices
    assert (throughput.metric, throughput.buys) == ("throughput", 0.0)
    assert latency.buys > 0


def test_of_two_limits_on_one_cost_only_the_tighter_is_at_fault(known: Measured) -> None:
    with pytest.raises(BudgetNotMet) as told:
        solve(known, parse_budget("throughput=100%,latency=1%"))
    assert "latency" in str(told.value)
    assert "throughput" not in str(told.value)


def test_a_better_proof_of_the_same_answer_is_kept_and_a_worse_one_is_not(store: Store, known: Measured) -> None:
    budget = parse_budget("latency=60%")
    solution = solve(known, budget)
    rough, exact = (proven_to(known, solution, share) for share in (0.1, 0.0))

    def again(found: Solution) -> models.Trial:
        return kept(store, trial_row(known, found, budget, None))

    assert (again(rough).status, again(rough).gap) == ("feasible", pytest.approx(0.1))
    first = again(exact)
    assert (first.status, first.gap, first.bound) == ("optimal", 0.0, solution.score)
    assert again(rough).gap == 0.0
    assert len(store.trials()) == 1


def test_a_proof_for_other_limits_than_the_budget_says_so(store: Store, known: Measured) -> None:
    asked, moved = parse_budget("latency=60%"), parse_budget("latency=57.5%")
    solution = solve(known, moved)
    trial = kept(store, trial_row(known, solution, asked, None, moved))
    assert (trial.budget, trial.details["solved_for"]) == ({"latency": "60%"}, {"latency": "57.5%"})
    # Proven for the budget itself, if only to a tenth, it is.
    trial = kept(store, trial_row(known, proven_to(known, solution, 0.1), asked, None, asked))
    assert "solved_for" not in trial.details
    assert trial.gap == pytest.approx(0.1)
    trial = kept(store, trial_row(known, solution, asked, None, moved))
    assert "solved_for" not in trial.details
