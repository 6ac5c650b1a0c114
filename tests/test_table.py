"""The table a search ends with: what its numbers are called."""

import pytest
import rows

from nas.view.table import comparison

SCENARIO = dict(device="cpu", dtype="float32", batch=1, prompt_tokens=8, generated_tokens=1)
WHOLE = dict(prefill_s=2.0, parameters=100, weight_bytes=400, contention=None)


@pytest.mark.parametrize(
    ("metric", "above", "name"),
    [
        ("kl", ["KL to the parent", "  before healing"], "  predicted (sum of scores)"),
        ("lm_loss", ["throughput, measured", "held-out loss"], "  predicted rise (sum of scores)"),
    ],
)
def test_the_sum_of_scores_stands_under_what_it_foresees(metric: str, above: list[str], name: str) -> None:
    # `nas solve --metric` may ask for another metric than the search did.
    request = {"score": {"metric": "lm_loss" if metric == "kl" else "kl"}}
    search = rows.search(request=request, scenario=SCENARIO, parent_costs={"whole": WHOLE})
    measured = dict(kl=0.5, kl_before_heal=0.75, lm_loss=2.25, throughput=4.0)
    found = comparison(search, rows.trial(score=0.1234, details={"metric": metric}, **measured))
    (place,) = [index for index, row in enumerate(found) if row.child == "0.1234"]
    assert [row.what for row in found[place - 2 : place + 1]] == [*above, name]
    assert sum("sum of scores" in row.what for row in found) == 1


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("kl", "KL to the parent, predicted (sum of scores)"),
        ("lm_loss", "held-out loss, predicted rise (sum of scores)"),
    ],
)
def test_what_nobody_measured_has_no_row(metric: str, name: str) -> None:
    search = rows.search(request={"score": {"metric": "kl"}}, scenario=SCENARIO, parent_costs={"whole": WHOLE})
    found = comparison(search, rows.trial(score=0.1234, details={"metric": metric}))
    assert [row.what for row in found] == [
        "architecture", "parameters", "memory", "latency, predicted", "throughput, predicted", name,
    ]  # fmt: skip
    assert all("-" not in (row.parent, row.child) for row in found)


def test_what_was_measured_of_the_whole_is_named_where_nothing_was_healed() -> None:
    search = rows.search(request={"score": {"metric": "kl"}}, scenario=SCENARIO, parent_costs={"whole": WHOLE})
    found = comparison(search, rows.trial(score=0.1234, kl_whole=0.75, details={"metric": "kl"}))
    assert [(row.what, row.child) for row in found[-2:]] == [
        ("KL to the parent, on the score text, untrained", "0.7500"),
        ("KL to the parent, predicted (sum of scores)", "0.1234"),
    ]


def test_every_metric_is_predicted_beside_the_parents_and_measured() -> None:
    scenario, whole = SCENARIO | dict(batch=2, generated_tokens=11), WHOLE | dict(decode_s=0.2)
    search = rows.search(request={"score": {"metric": "kl"}}, scenario=scenario, parent_costs={"whole": whole})
    measured = dict(latency_s=0.5, latency_ratio=0.5, latency_spread=0.0, ttft_s=0.2, decode_s=0.003, throughput=40.0)
    measured |= dict(predicted_latency_error_s=0.0, predicted_ttft_error_s=0.0, predicted_decode_error_s=0.0)
    found = {row.what: (row.parent, row.child) for row in comparison(search, rows.trial(
        details={"metric": "kl", "parent": {"decode_s": 0.006}}, **measured))}  # fmt: skip
    assert found["throughput, predicted"] == ("5.50 tok/s", "900 tok/s (16363.6%)")
    assert found["throughput, measured"] == ("-", "40.0 tok/s")
    assert found["ttft, predicted"] == ("2.00 s", "100 ms (5.0%)")
    assert found["ttft, measured"] == ("-", "200 ms")
    assert found["decode, predicted"] == ("200 ms", "10.0 ms (5.0%)")
    assert found["decode, measured"] == ("6.00 ms", "3.00 ms")
    assert found["latency, measured"] == ("-", "500 ms (50.0% ± 0.0%)")


def test_a_prediction_says_how_far_it_may_be_off_and_what_its_times_were_taken_under() -> None:
    scenario = SCENARIO | dict(generated_tokens=11)
    whole = WHOLE | dict(prefill_error_s=0.02, decode_s=0.2, decode_error_s=0.003, contention=0.04)
    search = rows.search(request={"score": {"metric": "kl"}}, scenario=scenario, parent_costs={"whole": whole})
    child = dict(predicted_latency_s=1.0, predicted_latency_error_s=0.03, predicted_decode_error_s=None)
    trial = rows.trial(predicted_contention=0.33, predicted_throughput=10.0, details={"metric": "kl"}, **child)
    found = {row.what: (row.parent, row.child) for row in comparison(search, trial)}
    assert found["latency, predicted"] == ("4.00 s ± 50.0 ms", "1.00 s ± 30.0 ms (25.0%)")
    assert found["  CPU contention"] == ("4%", "33%")
    # 11 tokens in 4 s, and 10 a second: the error is as large a share as the latency's.
    assert found["throughput, predicted"] == ("2.75 tok/s ± 0.0344 tok/s", "10.0 tok/s ± 0.300 tok/s (363.6%)")
    assert found["decode, predicted"] == ("200 ms ± 3.00 ms", "10.0 ms ± ? (5.0%)")


def test_the_verdict_on_each_limit_stands_in_the_table() -> None:
    search = rows.search(request={"score": {"metric": "kl"}}, scenario=SCENARIO, parent_costs={"whole": WHOLE})
    measured = dict(latency_s=1.17, latency_ratio=0.585, latency_spread=0.185 / 0.585, contention=0.45)
    budget = {"latency": "60%", "parameters": "50%"}
    trial = rows.trial(budget=budget, predicted_parameters=50, details={"metric": "kl"}, **measured)
    found = [(row.what, row.parent, row.child) for row in comparison(search, trial)]
    assert ("latency, measured", "-", "1.17 s (58.5% ± 18.5%)") in found
    assert ("  CPU contention", "45%", "45%") in found
    assert found[-2:] == [("budget, latency 60%", "", "undecided"), ("budget, parameters 50%", "", "met")]
