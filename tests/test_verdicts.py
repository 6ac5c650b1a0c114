"""A limit is met, missed or undecided, to the last digit; and what is done about a child of which it is undecided."""

from collections.abc import Iterator
from typing import Any

import pytest
import rows
from small_costs import SCENARIO

from cost_models.timing.pair import Comparison, Paired
from cost_models.timing.quality import ANY, Quality
from db import models
from nas.cli.printed import print_trial
from nas.job.units import parse_budget
from nas.solve.budget_loop import (
    SURE,
    TOLERANCE,
    Reached,
    limits_of,
    of_all,
    retargeted,
    times_of,
    uncertainty,
    verdict,
    verdicts,
)
from nas.stages.child_times import timed_until_decided, times_in
from nas.view.plain import answered

PARENT = {"latency_s": 2.0, "ttft_s": 1.0, "decode_s": 0.1, "throughput": 8.0}
SEARCH = rows.search(
    request={"score": {"metric": "kl"}},
    scenario=dict(device="cpu", dtype="float32", batch=1, prompt_tokens=8, generated_tokens=11),
    parent_costs={"whole": dict(prefill_s=1.0, decode_s=0.1, parameters=100, weight_bytes=400)},
)


def trial(budget: dict[str, str], **columns: Any) -> models.TrialRow:
    return rows.trial(budget=budget, details={"parent": PARENT, "metric": "kl"}, **columns)


@pytest.mark.parametrize(
    ("ratio", "error", "said"),
    [
        # 60 % and 2 % of it are 61.2 %: two standard errors stay below, reach past it, or stay above.
        (0.600, 0.0099, "met"),
        (0.600, 0.0101, "undecided"),
        (0.585, 0.316, "undecided"),
        (0.612, 0.0, "met"),
        (0.613, 0.0, "missed"),
        (0.650, 0.029, "missed"),
        (0.650, 0.030, "undecided"),
        (0.590, None, "undecided"),
    ],
)
def test_a_limit_is_undecided_where_the_error_leaves_both_possible(
    ratio: float, error: float | None, said: str
) -> None:
    measured = trial({"latency": "60%"}, latency_s=2 * ratio, latency_ratio=ratio, latency_spread=error)
    assert verdicts(SEARCH, measured) == {"latency": said}


def test_the_interval_is_of_so_many_standard_errors() -> None:
    assert Reached(1.0, TOLERANCE / SURE * 0.999).verdict == "met"
    assert Reached(1.0, TOLERANCE / SURE * 1.001).verdict == "undecided"


def test_every_timed_metric_has_an_error_of_its_own() -> None:
    budget = {"latency": "50%", "ttft": "50%", "decode": "50%", "throughput": "200%", "parameters": "50%"}
    times = dict(latency_s=0.9, latency_ratio=0.45, latency_spread=0.01, ttft_s=0.45, ttft_spread=0.2, decode_s=0.09,
                 decode_spread=0.1, throughput=17.8)  # fmt: skip
    found = verdicts(SEARCH, trial(budget, predicted_parameters=51, **times))
    assert found == {
        "latency": "met", "ttft": "undecided", "decode": "missed", "throughput": "met", "parameters": "missed"
    }  # fmt: skip


def test_bits_are_per_weight_of_the_parent_however_small_the_child() -> None:
    """400 bytes of 100 weights are 32 bits each; a third of that is met to the last bit that arithmetic has."""
    for budget, file_bytes, said in (("16", 200, "met"), ("16", 201, "missed"), ("32.25%", 129, "met")):
        size = dict(predicted_parameters=10, predicted_bits_per_weight=8 * file_bytes / 100)
        assert verdicts(SEARCH, trial({"bits": budget}, **size)) == {"bits": said}


def test_what_was_timed_under_too_much_contention_decides_nothing_however_well_its_rounds_agree() -> None:
    (limit,) = parse_budget("latency=60%")
    for contention, said in ((0.2, "met"), (0.3, "undecided"), (None, "met")):
        measured = trial(
            {"latency": "60%"}, latency_s=0.8, latency_ratio=0.4, latency_spread=0.0, contention=contention
        )
        assert verdict(times_of(measured), limit, 0.25) == said
        assert verdicts(SEARCH, measured) == {"latency": said}, "a quarter is the default"


def test_a_budget_is_met_where_every_limit_is() -> None:
    assert of_all([]) == of_all(["met", "met"]) == "met"
    assert of_all(["met", "undecided"]) == "undecided"
    assert of_all(["undecided", "not measured"]) == "not measured"
    assert of_all(["not measured", "missed", "met"]) == "missed"


def test_a_budget_of_an_older_version_has_no_verdict() -> None:
    assert limits_of(trial({"latency": 0.6, "memory": "1 GiB"})) == parse_budget("memory=1GiB")  # type: ignore[dict-item]


@pytest.mark.parametrize("ratio", [0.56, 0.63])
def test_no_limit_is_moved_by_noise(ratio: float) -> None:
    budget = parse_budget("latency=60%")
    sure, unsure = (
        trial({"latency": "60%"}, latency_s=2 * ratio, latency_ratio=ratio, latency_spread=error)
        for error in (0.001, 0.08)
    )
    assert retargeted(budget, unsure, budget) == budget
    (moved,) = retargeted(budget, sure, budget)
    assert moved.value == pytest.approx(0.6 * 0.6 / ratio, rel=1e-3)
    assert retargeted(budget, models_with(sure, contention=0.9), budget, 0.25) == budget


def models_with(row: models.TrialRow, **columns: Any) -> models.TrialRow:
    for name, value in columns.items():
        setattr(row, name, value)
    return row


def test_a_proof_says_how_well_its_times_are_known() -> None:
    known = dict(predicted_latency_s=2.0, predicted_latency_error_s=0.05)
    assert uncertainty(trial({"latency": "60%"}, **known)) == "for times known to ± 2.5%"
    assert uncertainty(trial({"throughput": "160%"}, **known)) == "for times known to ± 2.5%"
    assert uncertainty(trial({"latency": "60%"})) == "for times of unknown error"
    assert uncertainty(trial({"memory": "60%"}, **known)) == ""
    assert uncertainty(trial({"latency": "60%"}, predicted_latency_error_s=0.0)) == "", "simulated times are exact"


def test_the_verdict_and_its_grounds_are_printed_and_in_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    measured = trial(
        {"latency": "60%"}, latency_s=1.17, latency_ratio=0.585, latency_spread=0.316, contention=0.45, gap=0.0,
        predicted_latency_error_s=0.05, predicted_contention=0.33,
    )  # fmt: skip
    measured.id = 1
    found = answered(SEARCH, measured)
    assert (found["verdict"], found["verdicts"]) == ("undecided", {"latency": "undecided"})
    assert (found["contention"], found["predicted_contention"], found["latency_spread"]) == (0.45, 0.33, 0.316)
    print_trial(SEARCH, measured)
    said = capsys.readouterr().out
    assert "optimal, gap 0.0e+00, for times known to ± 5.0%" in said
    assert "undecided" in said
    assert "45%" in said
    assert "33%" in said
    assert "met" not in said.replace("parameters", "")


# A child timed until it is decided


def comparison(*ratios: float, contention: float = 0.0) -> Comparison:
    control = (1.0,) * len(ratios)
    return Comparison(SCENARIO, *2 * [Paired(control, ratios)], contention=contention)


def test_an_undecided_child_is_timed_again_until_it_is_decided() -> None:
    """Rounds add up; then two standard errors of the median of all fit below the limit."""
    given: Iterator[Comparison] = iter([comparison(0.55, 0.60, 0.65), *40 * [comparison(*9 * [0.60], 0.55, 0.65)]])
    why: list[str] = []

    def once(words: str) -> Comparison:
        why.append(words)
        return next(given)

    budget = parse_budget("latency=60%")
    timed = timed_until_decided(once, budget, Quality(patience_s=60))
    assert why[0] == ""
    assert why[1:] == ["again, as it may be within the budget or not: "]
    assert timed.rounds == 3 + 11
    assert verdict(times_in(timed), budget[0], 1.0) == "met"


@pytest.mark.parametrize(
    ("first", "quality"),
    [
        (comparison(0.5, 0.7), ANY),
        (comparison(0.4, 0.4), Quality(patience_s=60)),
        (comparison(0.8, 0.8), Quality(patience_s=60)),
    ],
)
def test_a_child_is_timed_once_where_there_is_no_patience_or_no_doubt(first: Comparison, quality: Quality) -> None:
    given = iter([first])
    assert timed_until_decided(lambda words: next(given), parse_budget("latency=60%"), quality) is first


def test_what_stays_undecided_ends_with_the_patience() -> None:
    calls = []

    def once(words: str) -> Comparison:
        calls.append(words)
        return comparison(0.5, 0.7)

    timed = timed_until_decided(once, parse_budget("latency=60%"), Quality(patience_s=0.05))
    assert timed.rounds == 2 * len(calls) > 2


def test_a_child_timed_on_a_busy_machine_is_what_it_was_on_an_idle_one() -> None:
    """Not the median of both."""
    given = iter([comparison(0.4, 0.4, contention=0.6), comparison(0.7, 0.7, contention=0.1)])
    quality = Quality(worst_contention=0.25, patience_s=60)
    timed = timed_until_decided(lambda words: next(given), parse_budget("latency=60%"), quality)
    assert (timed.latency.ratio, timed.contention) == (pytest.approx(0.7), 0.1)
