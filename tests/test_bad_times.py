"""Times known to be bad: found out, taken again, and never passed on without a word. The clock here is made up."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from small_costs import SCENARIO, Clocked, config_of

from blocklib.block import Role, Subblock
from blocklib.model import PuzzleNasConfig
from cost_models.cost import ZERO, Cost
from cost_models.geometry import FIXED, Geometry, geometry
from cost_models.metrics import METRICS
from cost_models.timing.measure import TimedStack, measure
from cost_models.timing.measured_geometry import MeasuredGeometry
from cost_models.timing.pair import Comparison, Paired
from cost_models.timing.quality import ANY, Quality
from cost_models.timing.suspicions import suspicions

FFN12, FFN48 = (Geometry("ffn", Subblock("ffn", width)) for width in ("12", "48"))
OWN_FFN, OWN_ATTENTION = Geometry("ffn", Subblock("ffn", "24")), Geometry("attention", Subblock("kv", "2"))
PATIENT = Quality(worst_spread=0.05, worst_contention=0.25, patience_s=60)


@pytest.fixture(scope="module")
def config() -> PuzzleNasConfig:
    return config_of()


class Clock:
    """Says that a model takes a microsecond a parameter, but for what is planned of FFNs of a width: of the first times
    such a stack is timed, a factor on each round's time, and the contention."""

    def __init__(self, planned: Mapping[int, Sequence[tuple[Sequence[float], float]]]):
        self._planned = planned
        self.timed: Counter[int] = Counter()

    def __call__(self, control: Any, other: Any, scenario: Any, rounds: Any) -> Comparison:
        width = self._width(other)
        plans = self._planned.get(width, ())
        turn = self.timed[width]
        factors, contention = plans[min(turn, len(plans) - 1)] if plans else ((1.0,) * 5, 0.0)
        self.timed[width] += 1
        one, two = (1e-6 * sum(values.numel() for values in model.parameters()) for model in (control, other))
        paired = Paired((one,) * len(factors), tuple(two * factor for factor in factors))
        return Comparison(SCENARIO, paired, paired, contention=contention)

    @staticmethod
    def _width(model: Any) -> int:
        """The width of the FFN of its first layer; 0 without one."""
        shapes = [
            tuple(v.shape) for name, v in model.named_parameters() if name.endswith("layers.0.mlp.up_proj.weight")
        ]
        return int(shapes[0][0]) if shapes else 0


def times(found: Sequence[Any]) -> dict[Geometry, MeasuredGeometry]:
    return {one.geometry: one for one in found if isinstance(one, MeasuredGeometry)}


def measured(
    config: PuzzleNasConfig, clock: Clock, quality: Quality
) -> tuple[dict[Geometry, MeasuredGeometry], list[str]]:
    """And why anything was timed again."""
    found = list(measure(config, [FFN12, FFN48], SCENARIO, quality=quality, engine=Clocked(clock=clock)))
    return times(found), [one.again for one in found if isinstance(one, TimedStack) and one.again]


EVEN, SURE = (1.0,) * 5, (1.0,) * 101
ROUGH = (0.2, 0.6, 1.0, 1.4, 1.8)


def ffn_s(config: PuzzleNasConfig, width: int) -> float:
    """The time of an FFN by the clock: three matrices and a norm."""
    return 1e-6 * config.hidden_size * (3 * width + 1)


def test_times_that_are_good_are_taken_once(config: PuzzleNasConfig) -> None:
    clock = Clock({})
    found, again = measured(config, clock, PATIENT)
    assert again == []
    # The own FFN stands in the stack of FFNs alone: the other four have attention, or nothing.
    assert (clock.timed[12], clock.timed[48], clock.timed[24]) == (1, 1, 1)
    for part, width in ((FFN12, 12), (OWN_FFN, 24), (FFN48, 48)):
        assert found[part].prefill_s == pytest.approx(ffn_s(config, width), rel=1e-3)


def test_a_spread_over_what_is_allowed_is_timed_again_until_it_is_not(config: PuzzleNasConfig) -> None:
    clock = Clock({12: [(ROUGH, 0.0), (ROUGH, 0.0), (SURE, 0.0)]})
    found, again = measured(config, clock, PATIENT)
    assert clock.timed[12] == 3
    assert clock.timed[48] == 1, "only what is bad"
    assert len(again) == 2
    assert "kv2+ffn12 has a spread of" in again[0]
    assert "at most 5.0% is allowed" in again[0]
    assert found[FFN12].spread <= 0.05
    assert found[FFN12].rounds == 5 + 5 + 101, "the rounds of all add up"


def test_a_bad_time_comes_with_what_is_bad_of_it_where_patience_ends(config: PuzzleNasConfig) -> None:
    for quality, least in ((ANY, 1), (Quality(0.05, 0.25, patience_s=0.05), 2)):
        clock = Clock({12: [(ROUGH, 0.4)]})
        found, _ = measured(config, clock, quality)
        assert clock.timed[12] >= least
        assert found[FFN12].contention == pytest.approx(0.4)
        fault = PATIENT.fault(found[FFN12].spread, found[FFN12].contention)
        assert "a CPU contention of 40%, at most 25% is allowed" in fault
        assert PATIENT.fault(found[FFN48].spread, found[FFN48].contention) == ""


def test_contention_is_timed_away_and_leaves_nothing_behind(config: PuzzleNasConfig) -> None:
    """Its rounds agree, and are wrong: they are not averaged with the right ones."""
    clock = Clock({12: [((3.0,) * 5, 0.8), (EVEN, 0.1)]})
    found, again = measured(config, clock, PATIENT)
    assert len(again) == 1
    assert "a CPU contention of 80%" in again[0]
    assert (found[FFN12].contention, found[FFN12].rounds) == (0.1, 5)
    assert found[FFN12].prefill_s == pytest.approx(ffn_s(config, 12), rel=1e-3)


def test_what_all_else_is_measured_against_is_good_before_the_rest_is_timed(config: PuzzleNasConfig) -> None:
    clock = Clock({24: [((2.0,) * 5, 0.9), (EVEN, 0.0)]})
    found, again = measured(config, clock, PATIENT)
    assert len(again) == 1
    assert found[OWN_FFN].prefill_s == pytest.approx(ffn_s(config, 24), rel=1e-3)
    assert found[FFN12].prefill_s == pytest.approx(ffn_s(config, 12), rel=1e-3)


def test_weights_that_take_no_time_are_looked_at_again_and_no_longer_than_is_sensible(config: PuzzleNasConfig) -> None:
    # So fast that the rest of the stack leaves nothing for it.
    clock = Clock({12: [((0.1,) * 5, 0.0)]})
    found, again = measured(config, clock, PATIENT)
    assert clock.timed[12] == 3
    assert again[0] == "ffn.ffn12 took no time to speak of, though it holds weights"
    assert (found[FFN12].prefill_s, found[FFN12].decode_s) == (0, 0)
    assert (found[FFN12].decode_error_s or 0) > 0
    mended = Clock({12: [((0.1,) * 5, 0.9), (EVEN, 0.0)]})
    assert measured(config, mended, PATIENT)[0][FFN12].decode_s == pytest.approx(ffn_s(config, 12), rel=1e-3)


def test_a_narrower_ffn_that_takes_longer_is_looked_at_again_as_is_the_wider(config: PuzzleNasConfig) -> None:
    clock = Clock({12: [((2.5,) * 5, 0.0), (EVEN, 0.0), (EVEN, 0.0)]})
    _, again = measured(config, clock, PATIENT)
    assert "larger" in again[0]
    assert clock.timed[12] == 3
    assert clock.timed[48] > 1


def geometry_of(size: str, prefill_s: float, error_s: float | None = 0.01, decode_s: float = 1.0) -> MeasuredGeometry:
    role: Role = "attention" if size.startswith("kv") else "ffn"
    return MeasuredGeometry(
        geometry(role, Subblock.parse(size)), 0.01, 5, 4, prefill_s, decode_s, prefill_error_s=error_s,
        decode_error_s=error_s,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("times_s", "errors_s", "suspects"),
    [
        ((4.15, 1.0), (0.01, 0.01), {"ffn256", "ffn512"}),
        ((0.5, 1.0), (0.01, 0.01), set()),
        # Longer, but by less than two standard errors of both.
        ((1.05, 1.0), (0.02, 0.01), set()),
        ((1.07, 1.0), (0.02, 0.01), {"ffn256", "ffn512"}),
        ((4.15, 1.0), (None, 0.01), set()),
    ],
)
def test_suspicious_is_what_surely_takes_longer_than_a_larger_one(
    times_s: tuple[float, float], errors_s: tuple[float | None, float], suspects: set[str]
) -> None:
    pairs = zip(("ffn256", "ffn512"), times_s, errors_s, strict=True)
    found = suspicions({one.geometry: one for one in (geometry_of(*each) for each in pairs)}, has_decode=True)
    assert {str(part.subblock) for part in found} == suspects
    if suspects and times_s[0] == 4.15:
        narrow = Geometry("ffn", Subblock("ffn", "256"))
        assert found[narrow] == "took 4.15 times as long as ffn.ffn512, which is larger"


def test_kinds_are_not_held_against_each_other() -> None:
    several = [geometry_of("kv4", 9.0), geometry_of("ffn8", 1.0), geometry_of("kv8", 9.0), geometry_of("ffn9", 1.0)]
    assert suspicions({one.geometry: one for one in several}, has_decode=True) == {}
    nothing = geometry_of("kv4", 1.0, decode_s=0.0)
    assert suspicions({nothing.geometry: nothing}, has_decode=False) == {}
    assert [*suspicions({nothing.geometry: nothing}, has_decode=True)] == [nothing.geometry]


# Errors add up


def test_the_error_of_a_stack_is_shared_by_its_layers_and_put_back_by_a_model_full_of_it(
    config: PuzzleNasConfig,
) -> None:
    factors = tuple(1 + 0.02 * step for step in range(-2, 3))
    found, _ = measured(config, Clock({12: [(factors, 0.0)]}), ANY)
    paired = Paired((1.0,) * 5, factors)
    layers = config.num_hidden_layers
    one_layer = ffn_s(config, 12) + found[OWN_ATTENTION].prefill_s
    stack_s = found[FIXED].prefill_s + layers * one_layer
    error_s = found[FFN12].prefill_error_s
    assert error_s == pytest.approx(paired.spread * stack_s / layers, rel=1e-2)
    parent_s = found[FIXED].prefill_s + layers * (found[OWN_ATTENTION].prefill_s + found[OWN_FFN].prefill_s)
    assert found[FFN12].spread == pytest.approx(layers * (error_s or 0) / parent_s, rel=1e-2)


def test_errors_of_a_sum_add_up_and_contention_is_the_worst_of_its_parts() -> None:
    one = Cost(1.0, 0.1, prefill_error_s=0.02, decode_error_s=0.001, contention=0.1)
    other = Cost(2.0, 0.2, prefill_error_s=0.03, decode_error_s=0.004, contention=0.4)
    whole = sum([one, other, one], ZERO)
    assert whole.prefill_error_s == pytest.approx(0.07)
    assert whole.contention == 0.4
    # Three steps after the first of four tokens.
    errors = {name: METRICS[name].error(whole, SCENARIO) for name in ("ttft", "decode", "latency")}
    assert errors == pytest.approx({"ttft": 0.07, "decode": 0.006, "latency": 0.07 + 3 * 0.006})
    unknown = whole + Cost(1.0, contention=None, decode_error_s=None)
    assert (unknown.contention, unknown.decode_error_s) == (None, None)
    assert METRICS["latency"].error(unknown, SCENARIO) is None
    assert unknown.prefill_s == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("spread", "contention", "words"),
    [
        (0.05, 0.25, ""),
        (0.31, 0.0, "a spread of 31.0%"),
        (0.0, 0.26, "a CPU contention of 26%"),
        (math.inf, 1.0, "a spread of inf%, at most 5.0% is allowed and a CPU contention of 100%"),
        (0.01, None, ""),
    ],
)
def test_a_fault_is_more_than_is_allowed(spread: float, contention: float | None, words: str) -> None:
    assert PATIENT.fault(spread, contention).startswith(words)
    assert bool(PATIENT.fault(spread, contention)) == bool(words)
    assert ANY.fault(spread, contention) == ""


@pytest.fixture
def joined() -> Callable[[float, float], Comparison]:
    def join(one: float, other: float) -> Comparison:
        first = Comparison(SCENARIO, Paired((1.0,), (2.0,)), contention=one)
        return PATIENT.of_both(first, Comparison(SCENARIO, Paired((1.0,) * 3, (3.0,) * 3), contention=other))

    return join


def test_rounds_add_up_unless_contention_spoils_some(joined: Callable[[float, float], Comparison]) -> None:
    both = joined(0.1, 0.2)
    assert (both.prefill.ratios, both.contention) == ((2, 3, 3, 3), pytest.approx(0.175))
    assert joined(0.9, 0.1).prefill.ratios == (3, 3, 3)
    assert joined(0.1, 0.9).prefill.ratios == (2,)
    assert joined(0.8, 0.9).prefill.ratios == (2,), "the less spoilt of two"
