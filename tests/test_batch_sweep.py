"""The best over batch sizes, against every one of them solved alone."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import search
from test_minimise import out_of_reach
from test_solvers import few, least_score, library, problems

from blocklib.block import Choice
from cost_models.cost import Cost
from cost_models.scenario import Scenario
from nas.errors import BudgetNotMetError
from nas.job.units import parse_budget
from nas.solve.across import solve_across
from nas.solve.solve import Measured
from solvers.errors import Infeasible
from solvers.exact import solver
from solvers.exact.settings import Settings
from solvers.problem import OPTIMAL_GAP, Option, Problem
from solvers.queries.batch_sweep import sweep


@few
@given(st.lists(problems(max_slots=4), min_size=1, max_size=4))
def test_the_best_of_all_is_kept(asked: list[Problem]) -> None:
    scores = {batch: least for batch, one in enumerate(asked) if (least := least_score(one)) is not None}
    if not scores:
        with pytest.raises(Infeasible):
            sweep(dict(enumerate(asked)))
        return
    batch, found = sweep(dict(enumerate(asked)))
    assert found.score == pytest.approx(min(scores.values()), abs=1e-9)
    assert scores[batch] == pytest.approx(found.score, abs=1e-9)
    assert found.bound <= min(scores.values()) + 1e-9
    assert found.gap <= OPTIMAL_GAP


def test_batch_sizes_that_cannot_be_better_are_not_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    tight, loose = library(20, 6, 0, budget=0.4), library(20, 6, 0, budget=0.8)
    asked = []
    solve = solver.solve
    monkeypatch.setattr(solver, "solve", lambda problem, *how: asked.append(problem) or solve(problem, *how))
    batch, found = sweep({1: tight, 8: loose, 32: replace(tight, maximums={"latency": 1e-3})})
    assert (batch, asked) == (8, [loose])
    assert found.score == solve(loose).score


def test_a_batch_size_that_takes_too_long_costs_no_answer_of_another() -> None:
    """It might be better still, as the bound says."""
    late = out_of_reach()
    late = replace(late, options=tuple(replace(option, score=1e-6 * option.score) for option in late.options))
    easy = library(20, 6, 0, budget=0.4)
    batch, found = sweep({"easy": easy, "late": late}, Settings(time_limit_s=0.5))
    assert (batch, found.score, found.status) == ("easy", solver.solve(easy).score, "feasible")
    assert found.bound < 1e-3
    with pytest.raises(TimeoutError, match=r"^late, later: in 1e-09 s no solution was found"):
        sweep(
            {"late": late, "none": replace(easy, minimums={"latency": 1e9}), "later": late}, Settings(time_limit_s=1e-9)
        )
    with pytest.raises(TimeoutError, match=r"^in 1e-09 s no solution was found"):
        sweep({"late": late}, Settings(time_limit_s=1e-9))


def measured(batch: int, decode_s: float, **of_search: Any) -> Measured:
    """A search of one layer: its FFN whole, or half of it for a score of 0.1. A step takes `decode_s`, of which the FFN
    is half."""
    scenario = Scenario("cpu", "float32", batch=batch, prompt_tokens=1, generated_tokens=11)
    part = Cost(decode_s=decode_s / 2, parameters=100, weight_bytes=400)
    half = Cost(decode_s=decode_s / 4, parameters=50, weight_bytes=200)
    options = [
        Option(slot, 1, name, score, cost.metrics(scenario))
        for slot, name, score, cost in [(0, "kv8", 0.0, part), (1, "ffn512", 0.0, part), (1, "ffn256", 0.1, half)]
    ]
    request = {"solver": {"gap": 1e-6, "time_limit": "60 s", "engine": "highs"}}
    row = search(id=f"b{batch}", name=f"batch{batch}", **{"request": request} | of_search)
    named = {"L0.attention=kv8": part, "L0.ffn=ffn512": part, "L0.ffn=ffn256": half}
    costs = {Choice.parse(text): cost for text, cost in named.items()}
    return Measured(row, scenario, Cost(), part + part, tuple(options), "kl", costs)


def test_the_batch_size_that_meets_a_throughput_at_the_least_harm_is_taken() -> None:
    """One sequence: 1 token a ms and step; eight: 8 tokens in 3 ms."""
    one, eight = measured(1, 1e-3), measured(8, 3e-3)
    known, found = solve_across([one, eight], parse_budget("throughput=2500 tok/s"))
    assert (known, found.score) == (eight, 0.0)
    known, found = solve_across([one, eight], parse_budget("decode=1 ms"))
    assert (known, found.score) == (one, 0.0)
    known, found = solve_across([one, eight], parse_budget("throughput=1200 tok/s,decode=0.9 ms"))
    assert (known, found.score) == (one, 0.1)


def test_a_budget_no_batch_size_meets_is_told_for_each() -> None:
    with pytest.raises(BudgetNotMetError, match=r"batch1: .*most reachable is 489 tok/s.*\nbatch8: .*is 3911 tok/s"):
        solve_across([measured(1, 3e-3), measured(8, 3e-3)], parse_budget("throughput=4000 tok/s"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (measured(1, 1e-3), r"batch1 \(b1\) is named twice"),
        (measured(8, 1e-3, parent_digest="another"), "batch1 and batch8 cannot be compared: the parents"),
        (measured(8, 1e-3, score_text="another"), "cannot be compared: they come from different text"),
    ],
)
def test_what_does_not_compare_is_refused(other: Measured, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve_across([measured(1, 1e-3), other], parse_budget("decode=1 ms"))


def test_searches_of_who_knows_which_text_are_refused() -> None:
    one, other = (measured(batch, 1e-3, score_text=None) for batch in (1, 8))
    with pytest.raises(ValueError, match="the text of the scores of batch1 and batch8 is unknown; run"):
        solve_across([one, other], parse_budget("decode=1 ms"))
