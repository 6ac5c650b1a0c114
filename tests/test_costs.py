"""Costs by arithmetic to the byte; what times are made of, without a word on how fast anything is."""

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from blocklib.block import LINEAR, SKIP, Architecture, Block, Choice, Subblock
from blocklib.family import shape_of
from blocklib.kinds import parent_architecture
from blocklib.model import PuzzleNasConfig
from blocklib.parent import child_config, own_shape
from blocklib.shape import Shape
from cost_models import analytic, price
from cost_models.attribute import Whole, attribute
from cost_models.cost import LINEAR_METRICS, METRICS, ZERO, Cost, limit
from cost_models.geometry import FIXED, Geometry, geometries, geometry
from cost_models.hardware import cpu_threads, describe
from cost_models.measured import Additivity, MeasuredGeometry, Progress, measure
from cost_models.scenario import Scenario
from cost_models.stack import EMPTY, Room, Stack, random_model, stack_of
from cost_models.timing import Comparison, Paired, Rounds, Subject, TimingError, new_cache, time_models

few = settings(max_examples=25, deadline=None)

SCENARIO = Scenario("cpu", "float32", batch=2, prompt_tokens=5, generated_tokens=4, threads=1)
TWO = Rounds(least=2, most=2)

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


def config_of(family: type[Any] = LlamaConfig, **given: Any) -> PuzzleNasConfig:
    """A tiny parent's. Its head size is not the hidden size over the heads, as in many real models."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "use_sliding_window": False,
    }
    config = family(**(sizes | given))
    shape = shape_of(config)
    return child_config(config, parent_architecture(shape), shape)


def own_block(shape: Shape) -> Block:
    return parent_architecture(shape).blocks[0]


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
    assert tuple(total) == LINEAR_METRICS
    for metric, value in total.items():
        assert value == pytest.approx(math.fsum(part.metrics(scenario)[metric] for part in parts), rel=1e-9)


@given(costs, scenarios, st.floats(1e-3, 1e6))
def test_a_throughput_floor_is_a_latency_ceiling(cost: Cost, scenario: Scenario, floor: float) -> None:
    totals = cost.totals(scenario)
    assert set(totals) == set(METRICS)
    metric, ceiling = limit("throughput", floor, scenario)
    assume(totals["throughput"] != pytest.approx(floor))
    assert (totals["throughput"] > floor) == (totals[metric] < ceiling)


def test_totals_of_a_scenario_by_hand() -> None:
    cost = Cost(prefill_s=0.5, decode_s=0.1, parameters=7, weight_bytes=28, kv_bytes_per_token=3)
    assert cost.totals(SCENARIO) == {
        "ttft_s": 0.5,
        "decode_s": 0.1,
        "latency_s": pytest.approx(0.8),
        "throughput": pytest.approx(10),
        "memory_bytes": 28 + 3 * 2 * 9,
        "parameters": 7,
    }
    assert "throughput" not in replace(cost, prefill_s=0.0, decode_s=0.0).totals(SCENARIO)


def test_a_limit_is_of_a_metric_and_positive() -> None:
    assert limit("memory_bytes", 1e9, SCENARIO) == ("memory_bytes", 1e9)
    with pytest.raises(ValueError, match="metrics: ttft_s"):
        limit("speed", 1, SCENARIO)
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be positive"):
            limit("throughput", value, SCENARIO)


def test_scenario_and_cost_do_not_import_torch() -> None:
    code = "import sys, cost_models.cost, cost_models.geometry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Arithmetic against real models


@st.composite
def architectures(draw: st.DrawFn, shape: Shape) -> Architecture:
    blocks: list[Block] = []
    left = shape.layers
    ffns = st.integers(1, shape.ffn_width).map(lambda width: Subblock("ffn", str(width)))
    while left:
        attention = draw(st.sampled_from(["kv1", f"kv{shape.kv_heads}", "linear", "skip"]).map(Subblock.parse))
        members = draw(st.integers(1, min(3, left)))
        if members == 1:
            ffn = draw(st.one_of(ffns, st.sampled_from([LINEAR, SKIP])))
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
    cost = analytic.architecture_cost(architecture, shape, dtype)
    model = random_model(config, architecture, scenario)
    assert sum(parameter.numel() for parameter in model.parameters()) == cost.parameters
    folder = tmp_path_factory.mktemp("child")
    model.save_pretrained(folder)
    assert sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values()) == cost.weight_bytes
    assert cache_bytes(Subject(model, scenario).cache) == cost.kv_bytes_per_token * 2 * (5 + 2)


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
    assert str(geometry("attention", LINEAR)) == "attention.linear"
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
    # What one part adds to a whole far above it is lost in that whole's rounding.
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
    with pytest.raises(ValueError, match="do not tell a, b apart"):
        attribute([Whole({"a": 1, "b": 1}, 1.0, 0.01), Whole({"a": 2, "b": 2}, 2.0, 0.01)])


# The clock


@pytest.fixture(scope="module")
def config() -> PuzzleNasConfig:
    return config_of()


@pytest.mark.parametrize("text", ["kv2+ffn24 kv2+ffn24", "skip+ffn24 linear+skip kv1+ffn24"])
def test_a_decode_step_leaves_the_cache_as_it_was(config: PuzzleNasConfig, text: str) -> None:
    subject = Subject(random_model(config, Architecture.parse(text), SCENARIO), SCENARIO)
    layers: list[Any] = subject.cache.layers
    kept = [(layer.keys, layer.values) for layer in layers]
    assert subject.cache.get_seq_length() == 5 + 2
    with torch.inference_mode():
        assert subject.decode() > 0
        assert subject.prefill() > 0
    for layer, (keys, values) in zip(layers, kept, strict=True):
        assert layer.keys is keys
        assert layer.values is values
        assert keys is None or keys.is_contiguous()


def test_a_model_without_attention_runs_and_keeps_nothing(config: PuzzleNasConfig) -> None:
    for text in ("skip+ffn24 linear+ffn24", "skip+skip"):
        model = random_model(config, Architecture.parse(text), SCENARIO)
        assert new_cache(model).layers == []
        comparison = time_models(model, model, SCENARIO, TWO)
        assert comparison.decode is not None
    assert time_models(model, random_model(config, Architecture(()), SCENARIO), SCENARIO, TWO).rounds == 2


def test_threads_are_the_scenarios_and_then_as_before(config: PuzzleNasConfig) -> None:
    before = torch.get_num_threads()
    with cpu_threads(replace(SCENARIO, threads=before + 1)):
        assert torch.get_num_threads() == before + 1
    model = random_model(config, Architecture.parse("kv2+ffn24"), SCENARIO)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(TimingError, match="not finite"):
        time_models(model, model, replace(SCENARIO, threads=before + 1), TWO)
    assert torch.get_num_threads() == before


def test_a_model_of_another_dtype_is_refused(config: PuzzleNasConfig) -> None:
    model = random_model(config, Architecture.parse("kv2+ffn24"), SCENARIO)
    with pytest.raises(ValueError, match="move it first"):
        time_models(model, model, replace(SCENARIO, dtype="bfloat16"), TWO)


def test_decode_is_timed_where_there_are_steps_or_it_is_asked_for(config: PuzzleNasConfig) -> None:
    model = random_model(config, Architecture.parse("kv2+ffn24"), SCENARIO)
    single = replace(SCENARIO, generated_tokens=1)
    assert time_models(model, model, single, TWO).decode is None
    assert time_models(model, model, single, TWO, decode=True).decode is not None
    alone = time_models(model, model, SCENARIO, TWO, decode=False)
    with pytest.raises(ValueError, match="needs decode steps"):
        _ = alone.latency


def test_a_comparison_puts_latency_together_round_by_round() -> None:
    prefill = Paired((1.0, 2.0, 1.0), (0.5, 1.0, 0.5))
    decode = Paired((0.1, 0.2, 0.1), (0.1, 0.2, 0.1))
    comparison = Comparison(SCENARIO, prefill, decode)
    assert comparison.latency.control_samples_s == pytest.approx((1.3, 2.6, 1.3))
    # The second round was slow for both: the ratio does not see it.
    assert comparison.latency.ratios == pytest.approx((0.8 / 1.3,) * 3)
    assert comparison.latency.other_s == pytest.approx(0.8)
    assert comparison.control_throughput == pytest.approx(2 * 4 / 1.3)
    assert comparison.other_throughput == pytest.approx(2 * 4 / 0.8)
    assert comparison.spread == pytest.approx(0, abs=1e-12)
    assert Paired((1.0,), (1.0,)).spread == math.inf


def test_rounds_stop_when_sure_or_spent_but_never_before_the_least() -> None:
    rounds = Rounds(least=3, most=9, tolerance=0.01, seconds=10)
    assert not rounds.enough(2, spread=0.0, spent_s=99)
    assert rounds.enough(3, spread=0.001, spent_s=1)
    assert not rounds.enough(3, spread=0.02, spent_s=1)
    assert rounds.enough(9, spread=0.02, spent_s=1)
    assert rounds.enough(4, spread=0.02, spent_s=11)
    with pytest.raises(ValueError, match="cannot be"):
        Rounds(least=1)


# Stacks


def test_a_stack_has_the_parents_layers_fewer_for_memory_more_for_the_cache(config: PuzzleNasConfig) -> None:
    shape = own_shape(config)
    own = own_block(shape)
    plenty = 10**9
    assert stack_of(own, shape, SCENARIO, Room(plenty, 0)) == Stack(own, 4)
    attention = Block(own.attention, SKIP)
    parent_bytes = held(parent_architecture(shape), shape)
    assert stack_of(attention, shape, SCENARIO, Room(plenty, parent_bytes)).layers == 4
    longer = stack_of(attention, shape, SCENARIO, Room(plenty, parent_bytes // 2))
    assert 4 < longer.layers <= 16
    short = stack_of(own, shape, SCENARIO, Room(held(Architecture((own,) * 2), shape), 0))
    assert short.layers == 2
    with pytest.raises(ValueError, match="lower the batch"):
        stack_of(own, shape, SCENARIO, Room(held(Architecture(()), shape), 0))


def held(architecture: Architecture, shape: Shape) -> int:
    return int(analytic.architecture_cost(architecture, shape, "float32").metrics(SCENARIO)["memory_bytes"])


def test_a_stack_counts_its_parts() -> None:
    stack = Stack(Block.parse("kv2+fuse(ffn8,ffn8)"), 3)
    assert stack.counts == {"base": 1, "layer": 3, "attention.kv2": 3, "ffn.ffn16": 3}
    assert Stack(EMPTY, 5).counts == {"base": 1, "layer": 5}


# Measuring


ASKED = [
    Geometry("attention", Subblock("kv", "1")),
    Geometry("attention", LINEAR),
    Geometry("ffn", Subblock("ffn", "12")),
    Geometry("ffn", Subblock("ffn", "48")),
]
OWN = [FIXED, Geometry("attention", Subblock("kv", "2")), Geometry("ffn", Subblock("ffn", "24"))]


def test_measuring_yields_the_fixed_part_the_own_and_what_was_asked_for(config: PuzzleNasConfig) -> None:
    shape = own_shape(config)
    skipped = Geometry("ffn", SKIP)
    seen = list(measure(config, [*ASKED, skipped, *OWN], SCENARIO, TWO))
    results = [one for one in seen if isinstance(one, MeasuredGeometry)]
    assert [one.geometry for one in results] == [*OWN, *ASKED]
    assert all(one.prefill_s >= 0 and one.decode_s >= 0 and one.rounds == 2 for one in results)
    progress = [one for one in seen if isinstance(one, Progress)]
    assert [(one.done, one.total) for one in progress] == [(done, 8) for done in range(1, 9)]
    (additivity,) = [one for one in seen if isinstance(one, Additivity)]
    assert additivity.decode is not None
    assert abs(additivity.prefill.parent) < 0.01
    assert abs(additivity.decode.parent) < 0.01

    measured = {one.geometry: one for one in results}
    child = Architecture.parse("kv1+fuse_last(ffn24,ffn24) linear+skip skip+ffn12")
    cost = price.architecture_cost(child, shape, "float32", measured)
    parts = [FIXED, ASKED[0], ASKED[3], ASKED[1], ASKED[2]]
    assert cost.decode_s == pytest.approx(sum(measured[part].decode_s for part in parts))
    assert replace(cost, prefill_s=0.0, decode_s=0.0) == analytic.architecture_cost(child, shape, "float32")
    with pytest.raises(price.NotMeasured, match=r"ffn\.ffn7 was not measured"):
        price.choice_cost(Choice.parse("L0.ffn=ffn7"), shape, "float32", measured)


def test_without_generation_only_prefill_is_measured(config: PuzzleNasConfig) -> None:
    seen = list(measure(config, [], replace(SCENARIO, generated_tokens=1), TWO))
    results = [one for one in seen if isinstance(one, MeasuredGeometry)]
    assert [one.geometry for one in results] == OWN
    assert all(one.decode_s == 0 for one in results)
    (additivity,) = [one for one in seen if isinstance(one, Additivity)]
    assert additivity.decode is None


def test_what_is_too_big_for_memory_is_said_before_anything_is_timed(config: PuzzleNasConfig) -> None:
    with pytest.raises(ValueError, match="one layer kv2"):
        next(measure(config, [], SCENARIO, TWO, memory_bytes=1000))


# The machine


def test_the_machines_line_is_stable_and_names_what_times_depend_on() -> None:
    line = describe("cpu", 1)
    assert line == describe("cpu", 1) != describe("cpu", 2)
    assert torch.__version__ in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="finds no cuda here"):
        describe("cuda", None)
