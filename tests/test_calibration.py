"""Costs of parts corrected by whole architectures: planted times come out."""

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from blocklib.block import Architecture
from cost_models.scenario import Scenario
from cost_models.timing.calibration import (
    ArchitectureTiming,
    Parts,
    PhaseTiming,
    calibrated,
    correction,
    counted,
    predicted_share,
)

LAYERS = 6
PARENT = Architecture.parse(" ".join(["kv4+ffn64"] * LAYERS))
TRUTH = {"fixed": 10.0, "attention.kv4": 1.0, "attention.kv2": 0.6, "ffn.ffn64": 3.0, "ffn.ffn32": 1.5}
SCENARIO = Scenario("cpu", "float32", 1, 16, 9)


def both(prefill_s: Mapping[str, float]) -> Parts:
    """A decode step takes a tenth of a prefill."""
    return {"prefill_s": prefill_s, "decode_s": {name: seconds / 10 for name, seconds in prefill_s.items()}}


def timing(text: str, spread: float = 0.005, slower: float = 2.0) -> ArchitectureTiming:
    """As a machine that is `slower` than on the day of the parts would time it, to the last digit."""
    architecture = Architecture.parse(text)
    phases = {}
    for phase, seconds in both(TRUTH).items():
        child_s, parent_s = (
            slower * sum(count * seconds[name] for name, count in counted(each).items())
            for each in (architecture, PARENT)
        )
        phases[phase] = PhaseTiming(child_s, parent_s, spread)
    return ArchitectureTiming(architecture, phases)


def timings(count: int, spread: float = 0.005) -> list[ArchitectureTiming]:
    drawn = random.Random(0)
    attentions, ffns = ("kv4", "kv2", "skip"), ("ffn64", "ffn32", "skip")
    found = []
    for _ in range(count):
        blocks = [f"{drawn.choice(attentions)}+{drawn.choice(ffns)}" for _ in range(LAYERS)]
        found.append(timing(" ".join(blocks), spread))
    return found


def test_parts_that_stacks_see_too_large_are_corrected() -> None:
    """But for the unit: ratios say nothing about the clock, so the parent's sum stays what it was."""
    seen = TRUTH | {"ffn.ffn32": 1.7, "attention.kv2": 0.57}
    found = calibrated(both(seen), PARENT, timings(24))
    for phase, seconds in both(TRUTH).items():
        assert found[phase] == pytest.approx(seconds, rel=0.01)


def test_without_timings_parts_stay_as_they_are() -> None:
    assert calibrated(both(TRUTH), PARENT, [])["prefill_s"] == pytest.approx(TRUTH)


def test_a_part_that_no_architecture_holds_stays_and_one_of_nothing_stays_nothing() -> None:
    found = calibrated(both(TRUTH | {"ffn.linear": 2.0, "attention.linear": 0.0}), PARENT, timings(8))["prefill_s"]
    assert found["ffn.linear"] == pytest.approx(2.0)
    assert found["attention.linear"] == 0.0


def test_noisy_timings_move_less_than_sure_ones() -> None:
    seen = both(TRUTH | {"ffn.ffn32": 1.8})
    sure, noisy = (calibrated(seen, PARENT, timings(6, spread))["prefill_s"]["ffn.ffn32"] for spread in (0.003, 0.5))
    assert abs(sure - 1.5) < abs(noisy - 1.5)


def test_an_architecture_of_unknown_parts_is_an_error() -> None:
    known = {name: seconds for name, seconds in TRUTH.items() if name != "ffn.ffn32"}
    with pytest.raises(ValueError, match=r"no seconds are known of ffn\.ffn32"):
        calibrated(both(known), PARENT, [timing("kv4+ffn32 " + " ".join(["kv4+ffn64"] * 5))])


def test_shares_are_of_the_whole_latency() -> None:
    """Eight steps after the prefill, each a tenth of it: the share of a phase is that of the whole."""
    half = timing(" ".join(["skip+ffn32"] * LAYERS))
    assert half.latency_share(SCENARIO) == pytest.approx((10 + 6 * 1.5) / (10 + 6 * 4))
    assert predicted_share(both(TRUTH), half.architecture, PARENT, SCENARIO) == pytest.approx(
        half.latency_share(SCENARIO)
    )
    slow_steps = both(TRUTH) | {"decode_s": {name: 0.0 for name in TRUTH} | {"fixed": 1.0}}
    share = predicted_share(slow_steps, half.architecture, PARENT, SCENARIO)
    assert share == pytest.approx((19 + 8) / (34 + 8))


def test_the_architectures_kept_out_decide() -> None:
    seen = both(TRUTH | {"ffn.ffn32": 1.8})
    drawn = timings(16)
    found = correction(seen, PARENT, SCENARIO, drawn[:8], drawn[8:])
    assert found.helps
    assert found.plain.bias > 0.01 > abs(found.corrected.bias)
    wrong = [replace(one, phases={phase: replace(each, seconds=2 * each.seconds) for phase, each in one.phases.items()})
             for one in drawn[:8]]  # fmt: skip
    assert not correction(both(TRUTH), PARENT, SCENARIO, wrong, drawn[8:]).helps
    with pytest.raises(ValueError, match="no prediction"):
        correction(seen, PARENT, SCENARIO, drawn, [])
