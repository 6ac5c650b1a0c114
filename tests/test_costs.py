"""Costs by arithmetic to the byte, and parts told from the times of wholes."""

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_costs import SCENARIO, config_of
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from blocklib.block import SKIP, Architecture, Block, Choice, Subblock
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from blocklib.shape import Shape
from cost_models import analytic
from cost_models.cost import MEASURED, ZERO, Cost
from cost_models.engines.torch_eager import TorchSubject, random_model
from cost_models.geometry import FIXED, Geometry, geometries, geometry
from cost_models.metrics import METRICS, error_of
from cost_models.scenario import Scenario
from cost_models.timing.least_squares import Whole, attribute

few = settings(max_examples=25, deadline=None)


scenarios = st.builds(
    Scenario,
    device=st.sampled_from(["cpu", "cuda", "cuda:1"]),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    batch=st.integers(1, 64),
    prompt_tokens=st.integers(1, 4096),
    generated_tokens=st.integers(1, 4096),
    threads=st.none() | st.integers(1, 8),
)
seconds = st.floats(1e-6, 100)
sizes = st.integers(0, 10**9)
costs = st.builds(Cost, seconds, seconds, sizes, sizes, sizes)


# Scenarios and costs


@given(scenarios, scenarios)
def test_a_scenarios_key_is_its_alone(one: Scenario, other: Scenario) -> None:
    assert (one.key() == other.key()) == (one == other)
    assert replace(one, threads=3).key() != replace(one, threads=None).key()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"device": "gpu"}, "cuda"),
        ({"dtype": "int8"}, "bfloat16"),
        ({"batch": 0}, "batch is 0"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0"),
        ({"generated_tokens": -1}, "generated_tokens is -1"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_a_wrong_scenario_says_what_would_be_right(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SCENARIO, **wrong)


@given(st.lists(costs, max_size=6), scenarios)
def test_linear_metrics_of_a_sum_are_the_sums(parts: list[Cost], scenario: Scenario) -> None:
    total = sum(parts, ZERO).metrics(scenario)
    assert set(total) == {metric.summed.column for metric in METRICS.values()}
    for metric, value in total.items():
        assert value == pytest.approx(math.fsum(part.metrics(scenario)[metric] for part in parts), rel=1e-9)


@given(costs, scenarios, st.floats(1e-3, 1e6))
def test_a_throughput_floor_is_a_latency_ceiling(cost: Cost, scenario: Scenario, floor: float) -> None:
    totals = cost.totals(scenario, 10**9)
    throughput = METRICS["throughput"]
    assert set(totals) == {metric.column for metric in METRICS.values()}
    assert throughput.summed is METRICS["latency"]
    ceiling = throughput.to_summed(floor, scenario, None)
    assert throughput.from_summed(ceiling, scenario, None) == pytest.approx(floor)
    assert throughput.to_summed(throughput.from_summed(0.0, scenario, None), scenario, None) == 0.0
    assume(totals["throughput"] != pytest.approx(floor))
    assert (totals["throughput"] > floor) == (totals["latency_s"] < ceiling)


@given(sizes, st.integers(1, 10**10), st.floats(1e-3, 64))
def test_a_ceiling_on_bits_is_one_on_the_file(held: int, parent_parameters: int, most: float) -> None:
    bits = METRICS["bits"]
    ceiling = bits.to_summed(most, SCENARIO, parent_parameters)
    assert bits.from_summed(ceiling, SCENARIO, parent_parameters) == pytest.approx(most)
    value = bits.of(Cost(weight_bytes=held), SCENARIO, parent_parameters)
    assert value == 8 * held / parent_parameters
    assume(value != pytest.approx(most))
    assert (value < most) == (held < ceiling)


def test_bits_per_weight_of_a_parent_that_nobody_names_are_no_number() -> None:
    with pytest.raises(AssertionError, match="bits is per weight of the parent"):
        METRICS["bits"].of(Cost(weight_bytes=8), SCENARIO, None)


def test_every_measured_part_of_a_metric_has_an_error() -> None:
    names = vars(ZERO)
    for metric in METRICS.values():
        parts = set(metric.parts(SCENARIO))
        assert parts <= names.keys()
        assert parts <= {*MEASURED} if metric.is_measured else parts.isdisjoint(MEASURED)
        assert metric.summed.summed is metric.summed
        assert metric.at_least == (metric.reciprocal_of is not None)
    assert {error_of(part) for part in MEASURED} <= names.keys()


def test_a_throughput_is_as_uncertain_as_its_latency() -> None:
    cost = Cost(prefill_s=0.5, decode_s=0.1, prefill_error_s=0.05, decode_error_s=0.01)
    latency, throughput = METRICS["latency"], METRICS["throughput"]
    assert latency.error(cost, SCENARIO) == pytest.approx(0.08)
    assert throughput.error(cost, SCENARIO) == pytest.approx(0.1 * (throughput.of(cost, SCENARIO, None) or 0))
    assert METRICS["memory"].error(cost, SCENARIO) == 0
    unknown = replace(cost, decode_error_s=None)
    assert latency.error(unknown, SCENARIO) is throughput.error(unknown, SCENARIO) is None
    assert METRICS["ttft"].error(unknown, SCENARIO) == 0.05


def test_totals_of_a_scenario_by_hand() -> None:
    cost = Cost(prefill_s=0.5, decode_s=0.1, parameters=7, weight_bytes=28, cache_bytes=54)
    assert cost.totals(SCENARIO, 14) == {
        "ttft_s": 0.5,
        "decode_s": 0.1,
        "latency_s": pytest.approx(0.8),
        "throughput": pytest.approx(10),
        "energy_j": 0,
        "memory_bytes": 28 + 54,
        "file_bytes": 28,
        "bits_per_weight": 16,
        "parameters": 7,
    }
    assert "throughput" not in replace(cost, prefill_s=0.0, decode_s=0.0).totals(SCENARIO, 14)


def test_scenario_and_cost_do_not_import_torch() -> None:
    code = "import sys, cost_models.cost, cost_models.scenario; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Arithmetic against real models


@st.composite
def architectures(draw: st.DrawFn, shape: Shape) -> Architecture:
    blocks: list[Block] = []
    left = shape.layers
    ffns = st.integers(1, shape.ffn_width).map(lambda width: Subblock("ffn", str(width)))
    while left:
        kinds = ["kv1", f"kv{shape.kv_heads}", "window4", "window9", "linear", "skip"]
        attention = draw(st.sampled_from(kinds).map(Subblock.parse))
        members = draw(st.integers(1, min(3, left)))
        if members == 1:
            ffn = draw(st.one_of(ffns, st.sampled_from([Subblock("linear"), SKIP])))
        else:
            kind = draw(st.sampled_from(["fuse", "fuse_last"]))
            ffn = Subblock(kind, parts=tuple(draw(ffns) for _ in range(members)))
        blocks.append(Block(attention, ffn))
        left -= members
    return Architecture(tuple(blocks))


parents = st.sampled_from([LlamaConfig, Qwen2Config, Qwen3Config]).flatmap(
    lambda family: st.builds(
        config_of,
        st.just(family),
        tie_word_embeddings=st.booleans(),
        attention_bias=st.booleans(),
        mlp_bias=st.booleans(),
        head_dim=st.sampled_from([4, 6]),
    )
)


@few
@given(parents, st.data())
def test_arithmetic_equals_what_a_child_holds_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, config: PuzzleNasConfig, data: st.DataObject
) -> None:
    shape = own_shape(config)
    architecture = data.draw(architectures(shape))
    dtype = data.draw(st.sampled_from(["float32", "bfloat16"]))
    scenario = replace(SCENARIO, dtype=dtype)
    cost = analytic.architecture_cost(architecture, shape, scenario)
    model = random_model(config, architecture, scenario)
    assert sum(parameter.numel() for parameter in model.parameters()) == cost.parameters
    folder = tmp_path_factory.mktemp("child")
    model.save_pretrained(folder)
    assert sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values()) == cost.weight_bytes
    # A subject keeps the prompt and half of what is generated.
    half = replace(scenario, generated_tokens=scenario.generated_tokens // 2)
    held = analytic.architecture_cost(architecture, shape, half).cache_bytes
    assert cache_bytes(TorchSubject(model, scenario).cache) == held <= cost.cache_bytes


def cache_bytes(cache: Any) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if layer.keys is not None)


# Geometries


def test_a_fused_run_runs_as_one_wide_ffn_and_a_skip_as_nothing() -> None:
    wide = Geometry("ffn", Subblock("ffn", "60"))
    assert str(wide) == "ffn.ffn60"
    for kind in ("fuse", "fuse_last"):
        assert geometry("ffn", Subblock.parse(f"{kind}(ffn10,ffn20,ffn30)")) == wide
    assert geometries(Choice.parse("L1.block=kv2+skip")) == (Geometry("attention", Subblock("kv", "2")),)
    assert geometries(Choice.parse("L1.block=skip+skip")) == ()
    assert str(geometry("attention", Subblock("linear"))) == "attention.linear"
    assert str(FIXED) == "fixed"


# Attribution


@few
@given(st.lists(seconds, min_size=4, max_size=4), st.permutations(range(6)))
def test_attribution_recovers_planted_parts(planted: list[float], order: Sequence[int]) -> None:
    truth = dict(zip(("base", "layer", "attention", "ffn"), planted, strict=True))
    rows = [
        {"base": 1},
        {"base": 1, "layer": 4},
        {"base": 1, "layer": 6, "attention": 6},
        {"base": 1, "layer": 4, "ffn": 4},
        {"base": 1, "layer": 3, "attention": 3, "ffn": 3},
        {"base": 1, "layer": 9, "attention": 9, "ffn": 9},
    ]
    wholes = [Whole(rows[i], sum(n * truth[part] for part, n in rows[i].items()), spread=0.01) for i in order]
    # The contribution of one part to a much larger whole is lost in its rounding.
    assert attribute(wholes) == pytest.approx(truth, rel=1e-6, abs=1e-9 * sum(planted))


def test_the_surer_time_counts_more_and_the_control_is_met() -> None:
    unsure, sure = Whole({"a": 2}, 2.0, spread=0.1), Whole({"a": 2}, 4.0, spread=0.0)
    parts = attribute([unsure, sure])
    assert parts["a"] == pytest.approx(2.0, rel=1e-3)
    assert sure.predicted(parts) == pytest.approx(4.0, rel=1e-3)


def test_a_part_too_small_to_see_is_zero_and_the_rest_fitted_without_it() -> None:
    parts = attribute([Whole({"a": 1}, 1.0, 0.01), Whole({"a": 1, "b": 1}, 0.98, 0.01)])
    assert parts["b"] == 0
    assert 0.98 < parts["a"] < 1


def test_wholes_that_do_not_tell_parts_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="do not determine a, b"):
        attribute([Whole({"a": 1, "b": 1}, 1.0, 0.01), Whole({"a": 2, "b": 2}, 2.0, 0.01)])
