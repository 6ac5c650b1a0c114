"""The parts of a time, without a word on how fast anything is."""

import math
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_costs import SCENARIO, config_of, own_block

from blocklib.block import SKIP, Architecture, Block, Subblock
from blocklib.kinds import parent_architecture
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from blocklib.shape import Shape
from cost_models import analytic
from cost_models.engines.engines import describe
from cost_models.engines.torch_eager import TorchSubject, new_cache, random_model, time_models
from cost_models.errors import TimingError
from cost_models.geometry import FIXED, Geometry, geometries
from cost_models.hardware import cpu_threads, usable_cores
from cost_models.metrics import METRICS
from cost_models.timing.contention import Watch
from cost_models.timing.measure import Additivity, TimedStack, measure
from cost_models.timing.measured_geometry import MeasuredGeometry
from cost_models.timing.pair import Comparison, Paired, Rounds
from cost_models.timing.stack import EMPTY, Room, Stack, stack_of

TWO = Rounds(least=2, most=2)


# The clock


@pytest.fixture(scope="module")
def config() -> PuzzleNasConfig:
    return config_of()


@pytest.mark.parametrize("text", ["kv2+ffn24 kv2+ffn24", "skip+ffn24 linear+skip kv1+ffn24"])
def test_a_decode_step_leaves_the_cache_as_it_was(config: PuzzleNasConfig, text: str) -> None:
    subject = TorchSubject(random_model(config, Architecture.parse(text), SCENARIO), SCENARIO)
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


def test_decode_is_timed_where_there_are_steps(config: PuzzleNasConfig) -> None:
    model = random_model(config, Architecture.parse("kv2+ffn24"), SCENARIO)
    alone = time_models(model, model, replace(SCENARIO, generated_tokens=1), TWO)
    assert alone.decode is None
    assert alone.latency == alone.prefill
    with pytest.raises(ValueError, match="needs decode steps"):
        _ = replace(alone, scenario=SCENARIO).latency


def test_a_comparison_puts_latency_together_round_by_round() -> None:
    prefill = Paired((1.0, 2.0, 1.0), (0.5, 1.0, 0.5))
    decode = Paired((0.1, 0.2, 0.1), (0.1, 0.2, 0.1))
    comparison = Comparison(SCENARIO, prefill, decode)
    assert comparison.latency.control_samples == pytest.approx((1.3, 2.6, 1.3))
    # The second round was slow for both: the ratio does not see it.
    assert comparison.latency.ratios == pytest.approx((0.8 / 1.3,) * 3)
    assert comparison.latency.other == pytest.approx(0.8)
    ttft = comparison.of(METRICS["ttft"])
    assert ttft is not None
    assert ttft.other == pytest.approx(0.5)
    assert replace(comparison, decode=None).of(METRICS["decode"]) is None
    assert comparison.spread == pytest.approx(0, abs=1e-12)
    assert Paired((1.0,), (1.0,)).spread == math.inf


def test_rounds_stop_when_sure_or_spent_but_never_before_the_least() -> None:
    rounds = Rounds(least=3, most=9, tolerance=0.01, seconds=10)
    assert not rounds.enough(2, spread=0.0, spent_s=99)
    assert rounds.enough(3, spread=0.001, spent_s=1)
    assert not rounds.enough(3, spread=0.02, spent_s=1)
    assert rounds.enough(9, spread=0.02, spent_s=1)
    assert rounds.enough(4, spread=0.02, spent_s=11)
    with pytest.raises(ValueError, match="is impossible"):
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
    return int(analytic.architecture_cost(architecture, shape, SCENARIO).metrics(SCENARIO)["memory_bytes"])


def test_a_stack_counts_its_parts() -> None:
    stack = Stack(Block.parse("kv2+fuse(ffn8,ffn8)"), 3)
    assert stack.counts == {"base": 1, "layer": 3, "attention.kv2": 3, "ffn.ffn16": 3}
    assert Stack(EMPTY, 5).counts == {"base": 1, "layer": 5}


# Measuring


ASKED = [
    Geometry("attention", Subblock("kv", "1")),
    Geometry("attention", Subblock("linear")),
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
    progress = [one for one in seen if isinstance(one, TimedStack)]
    assert [(one.done, one.total) for one in progress] == [(done, 8) for done in range(1, 9)]
    (additivity,) = [one for one in seen if isinstance(one, Additivity)]
    assert additivity.decode is not None
    assert abs(additivity.prefill.parent) < 0.01
    assert abs(additivity.decode.parent) < 0.01

    measured = {one.geometry: one for one in results}
    child = Architecture.parse("kv1+fuse_last(ffn24,ffn24) linear+skip skip+ffn12")
    parts = [FIXED, *(part for choice in child.choices() for part in geometries(choice))]
    assert sorted(map(str, parts)) == sorted(map(str, [FIXED, *ASKED[:4]]))
    counted = analytic.architecture_cost(child, shape, SCENARIO)
    cost = sum((measured[part].cost for part in parts), counted)
    assert cost.decode_s == pytest.approx(sum(measured[part].decode_s for part in parts))
    assert cost.prefill_error_s == pytest.approx(sum(measured[part].prefill_error_s or 0.0 for part in parts))
    assert cost.contention == max(measured[part].contention or 0.0 for part in parts)
    arithmetic = {name for name, value in vars(counted).items() if isinstance(value, int)}
    assert {"parameters", "weight_bytes", "cache_bytes"} <= arithmetic
    assert {name: getattr(cost, name) for name in arithmetic} == {name: getattr(counted, name) for name in arithmetic}


def test_without_generation_only_prefill_is_measured(config: PuzzleNasConfig) -> None:
    seen = list(measure(config, [], replace(SCENARIO, generated_tokens=1), TWO))
    results = [one for one in seen if isinstance(one, MeasuredGeometry)]
    assert [one.geometry for one in results] == OWN
    assert all(one.decode_s == 0 for one in results)
    (additivity,) = [one for one in seen if isinstance(one, Additivity)]
    assert additivity.decode is None


def test_what_is_too_big_for_memory_is_said_before_anything_is_timed(config: PuzzleNasConfig) -> None:
    with pytest.raises(ValueError, match="one layer kv2"):
        next(measure(config, [], replace(SCENARIO, batch=10**12), TWO))


# The machine


def test_the_machines_line_is_stable_and_names_what_times_depend_on() -> None:
    line, two = (describe(replace(SCENARIO, threads=threads)) for threads in (1, 2))
    assert line == describe(replace(SCENARIO, threads=1)) != two
    assert torch.__version__ in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="finds no cuda here"):
        describe(replace(SCENARIO, device="cuda"))


def test_what_other_programs_take_of_the_cores_needed_is_told() -> None:
    """A timing needs all cores of a machine, or one: then the others may be taken."""
    cores = usable_cores()
    every, one = (Watch(replace(SCENARIO, threads=threads)) for threads in (cores, 1))
    endless = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        time.sleep(1.0)
        taken, of_one = every.contention(), one.contention()
    finally:
        for program in endless:
            program.kill()
            program.wait()
    assert 0.3 < taken <= 1
    assert of_one == pytest.approx(max(0.0, taken * cores - (cores - 1)), abs=0.05)


FAULTS = """
import resource
import torch
from blocklib.allocator import kept_memory

numbers = torch.zeros(2**24)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numbers.add(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

freed = sorted(faults() for _ in range(10))[5]
with kept_memory():
    kept = sorted([faults() for _ in range(30)][20:])[5]
print(freed, kept, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told to keep memory")
def test_memory_a_pass_frees_is_there_for_the_next_and_goes_back_at_the_end() -> None:
    """64 MiB are more than glibc keeps by itself. The first passes find room for what later ones use again.

    In a process of its own: a heap that others have used may have a hole where the block fits without being told.
    """
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    freed, kept, after = map(int, run.stdout.split())
    assert 5 * kept < freed, "what a pass frees was not kept for the next"
    assert 2 * after > freed, "what was kept did not go back at the end"
