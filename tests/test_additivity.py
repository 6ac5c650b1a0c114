"""Sums of scores beside whole architectures: which are compared, and what is said of them."""

import pytest
from rows import trial

from db.models import TrialRow
from nas.report.additivity import additivity


def tried(name: str, score: float, kl: float | None, metric: str = "kl") -> TrialRow:
    return trial(name, architecture=name, score=score, kl_whole=kl, details={"metric": metric})


def test_each_architecture_once_and_only_what_was_measured_and_predicted() -> None:
    trials = [tried("a", 1.0, 2.0), tried("b", 2.0, 3.0), tried("a", 1.0, 2.0), tried("c", 1.0, None)]
    trials += [tried("d", 4.0, 16.0), tried("e", 1.0, 9.0, metric="lm_loss"), tried("parent", 0.0, 0.0)]
    found = additivity(trials)
    assert found is not None
    assert [(pair.predicted, pair.measured) for pair in found.pairs] == [(1, 2), (2, 3), (4, 16), (0, 0)]
    assert found.factor == 2.0
    assert found.spearman == pytest.approx(1.0)
    even = additivity([tried("a", 1.0, 1.5), tried("b", 1.0, 3.0)])
    assert even is not None
    assert even.factor == 2.25


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert additivity([tried("c", 1.0, None), tried("e", 1.0, 9.0, metric="lm_loss")]) is None
    one = additivity([tried("parent", 0.0, 0.0)])
    assert one is not None
    assert (one.spearman, one.factor) == (None, None)
