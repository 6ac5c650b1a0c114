"""The budget is held against what was measured, and new times against those of another day."""

from typing import Any

import pytest
from rows import trial

from blocklib.block import Subblock
from cost_models.geometry import FIXED, Geometry
from cost_models.timing.measured_geometry import MeasuredGeometry
from db import models
from nas.job.units import parse_budget
from nas.solve.budget_loop import TOLERANCE, overshoot, retargeted, worst_overshoot
from nas.stages.clock import clock

PARENT = {"latency_s": 2.0, "ttft_s": 2.0, "throughput": 8.0}


def measured(latency_s: float, throughput: float, spread: float | None = 0.0, **columns: Any) -> models.TrialRow:
    ratio = latency_s / PARENT["latency_s"]
    times = dict(latency_s=latency_s, latency_ratio=ratio, latency_spread=spread, throughput=throughput)
    return trial(memory_bytes=10**12, details={"parent": PARENT}, **times | columns)


def test_how_far_a_limit_is_passed_whichever_way_it_points() -> None:
    (latency,), (throughput,), (memory,) = map(parse_budget, ("latency=50%", "throughput=16 tok/s", "memory=1GiB"))
    assert overshoot(measured(1.1, 8.0), latency) == pytest.approx(1.1)
    assert overshoot(measured(0.9, 8.0), latency) == pytest.approx(0.9)
    assert overshoot(measured(1.0, 8.0), throughput) == pytest.approx(2.0)
    # The solver keeps limits that arithmetic decides.
    assert overshoot(measured(1.0, 8.0), memory) == 1.0
    assert worst_overshoot(measured(1.1, 8.0), (latency, throughput)) == pytest.approx(2.0)


def test_only_what_is_missed_is_tightened_and_by_how_much_it_is() -> None:
    budget = parse_budget("latency=50%,throughput=10 tok/s")
    assert retargeted(budget, measured(1.0 + TOLERANCE, 10.0), budget) == budget
    latency, throughput = retargeted(budget, measured(1.25, 12.0), budget)
    assert latency.value == pytest.approx(0.5 / 1.25)
    assert throughput == budget[1]
    latency, throughput = retargeted(budget, measured(0.9, 8.0), (latency, throughput))
    assert latency.value == pytest.approx(0.5 / 1.25)
    assert throughput.value == pytest.approx(10 * 10 / 8)


def test_what_is_left_of_limits_is_given_back_where_none_is_missed() -> None:
    budget = parse_budget("latency=50%,throughput=10 tok/s,memory=1GiB")
    assert retargeted(budget, measured(1.0 - TOLERANCE, 10.0), budget) == budget
    latency, throughput, memory = retargeted(budget, measured(0.8, 12.5), budget)
    assert latency.value == pytest.approx(0.5 / 0.8)
    assert throughput.value == pytest.approx(10 * 10 / 12.5)
    assert memory == budget[2]
    # More than the parent takes is no limit.
    assert retargeted(parse_budget("latency=90%"), measured(0.9, 8.0), parse_budget("latency=90%"))[0].value == 1.0


def test_new_times_are_put_on_the_clock_of_the_known_ones() -> None:
    own = [FIXED, Geometry("attention", Subblock.parse("kv2")), Geometry("ffn", Subblock.parse("ffn24"))]
    new = Geometry("ffn", Subblock.parse("ffn8"))
    today = {part: MeasuredGeometry(part, 0.01, 5, 4, prefill_s=2.0, decode_s=0.0) for part in [*own, new]}
    then: dict[Geometry, models.CostRow | None] = {
        part: models.CostRow(
            key=str(part), name=str(part), spread=0.01, prefill_s=prefill_s, decode_s=0.0, parameters=0,
            active_parameters=0, weight_bytes=0, prefill_bytes=0, decode_bytes=0, cache_bytes=0,
        )
        for part, prefill_s in zip(own, (1.0, 2.0, 6.0), strict=True)
    }  # fmt: skip
    factors = clock(then, today, own)
    assert factors.pop("prefill_s") == pytest.approx(1.5)
    assert set(factors.values()) == {1.0}
    assert set(clock(then | {own[1]: None}, today, own).values()) == {1.0}
    assert set(clock({}, today, own).values()) == {1.0}
