"""The best over batch sizes, against every one of them solved alone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_solvers import few, least_score, library, problems

from solvers import mip
from solvers.batch_sweep import sweep
from solvers.problem import OPTIMAL_GAP, Infeasible, Problem


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
    solve = mip.solve
    monkeypatch.setattr(mip, "solve", lambda problem, **how: asked.append(problem) or solve(problem, **how))
    batch, found = sweep({1: tight, 8: loose, 32: replace(tight, maximums={"latency": 1e-3})})
    assert (batch, asked) == (8, [loose])
    assert found.score == solve(loose).score
