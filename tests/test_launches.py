"""Whether launches set the time of a decode step: planted times, no GPU."""

from dataclasses import replace

import pytest
from small_costs import SCENARIO, config_of

from blocklib.block import Subblock
from blocklib.parent import own_shape
from cost_models.geometry import FIXED, Geometry
from cost_models.scenario import Scenario
from cost_models.timing.launches import FfnStep, is_launch_bound, launch_warning
from cost_models.timing.measured_geometry import MeasuredGeometry

CUDA = Scenario("cuda", "bfloat16", batch=1, prompt_tokens=128, generated_tokens=128)


def step(read_bytes: float, seconds: float, error_s: float = 1e-6) -> FfnStep:
    return FfnStep(read_bytes, seconds, error_s)


def test_equal_times_of_unequal_widths_are_launches() -> None:
    assert is_launch_bound([step(100, 50e-6), step(200, 51e-6), step(400, 50e-6)])
    assert is_launch_bound([step(400, 60e-6), step(100, 55e-6)])


def test_times_that_follow_the_bytes_are_the_devices() -> None:
    assert not is_launch_bound([step(100, 12.5e-6), step(400, 50e-6)])
    assert not is_launch_bound([step(100, 25e-6), step(400, 50e-6)])


def test_noise_close_widths_and_single_ffns_leave_it_open() -> None:
    assert not is_launch_bound([step(100, 50e-6, 10e-6), step(400, 50e-6, 10e-6)])
    assert not is_launch_bound([step(300, 50e-6), step(400, 50e-6)])
    assert not is_launch_bound([step(400, 50e-6)])
    assert not is_launch_bound([])


def planted(*seconds: float) -> dict[Geometry, MeasuredGeometry]:
    """Times of FFNs 6, 12 and 24 wide, beside parts that do not count."""
    parts = [Geometry("ffn", Subblock("ffn", width)) for width in ("6", "12", "24")]
    ffns = {
        part: MeasuredGeometry(part, 0.01, 5, 4, prefill_s=1.0, decode_s=each, decode_error_s=each / 100)
        for part, each in zip(parts, seconds, strict=True)
    }
    others = [FIXED, Geometry("attention", Subblock("kv", "2")), Geometry("ffn", Subblock("linear"))]
    return ffns | {part: MeasuredGeometry(part, 0.01, 5, 4, 1.0, 1.0) for part in others}


def test_eager_torch_on_cuda_names_the_engines_to_take() -> None:
    shape = own_shape(config_of())
    said = launch_warning(planted(1.0, 1.0, 1.0), shape, CUDA)
    assert "scenario.engine: torch_compile or vllm" in said
    assert launch_warning(planted(0.25, 0.5, 1.0), shape, CUDA) == ""


@pytest.mark.parametrize(
    "scenario", [SCENARIO, replace(CUDA, engine="torch_compile"), replace(CUDA, generated_tokens=1)], ids=str
)
def test_others_say_nothing(scenario: Scenario) -> None:
    assert launch_warning(planted(1.0, 1.0, 1.0), own_shape(config_of()), scenario) == ""
