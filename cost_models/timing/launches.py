"""Whether launches of kernels, not the device, set the time of a decode step.

Each operation of an eager model is launched from Python, in some microseconds. Where the device is done sooner, a step
takes as long as its launches, which are as many for a narrow FFN as for a wide one. So the widths tell: a device that
sets the time reads a wide FFN for longer. Knows times and bytes, no engine and no device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blocklib.block import Choice
from blocklib.shape import Shape
from cost_models.analytic import choice_cost
from cost_models.geometry import Geometry
from cost_models.scenario import Scenario
from cost_models.timing.measured_geometry import MeasuredGeometry

_LEAST_RATIO = 2.0
"""How many times as many bytes the largest FFN has, at least, for its time to tell anything."""
_LEAST_SHARE = 0.5
"""The share of the time expected by bytes that a wider FFN must add, for the device to set the time."""
_SURE = 2.0
"""Standard errors within which a time is."""


@dataclass(frozen=True)
class FfnStep:
    """An FFN in a decode step: the bytes that it reads, and the seconds that it adds, with their error."""

    read_bytes: float
    seconds: float
    error_s: float


def is_launch_bound(steps: Sequence[FfnStep]) -> bool:
    """Whether the largest FFN surely adds less than half of the time over the smallest that its bytes would.

    False where their bytes differ by less than a factor of two, or noise leaves it open.
    """
    if not steps:
        return False
    small, large = (choose(steps, key=lambda step: step.read_bytes) for choose in (min, max))
    if large.read_bytes < _LEAST_RATIO * small.read_bytes:
        return False
    expected_s = large.seconds * (1 - small.read_bytes / large.read_bytes)
    most_s = large.seconds - small.seconds + _SURE * (large.error_s + small.error_s)
    return most_s < _LEAST_SHARE * expected_s


def launch_warning(times: Mapping[Geometry, MeasuredGeometry], shape: Shape, scenario: Scenario) -> str:
    """Which engine to take instead of eager torch on CUDA, and why; empty where the device sets the time, and for
    other engines and devices."""
    if scenario.engine != "torch" or not scenario.device.startswith("cuda") or scenario.generated_tokens < 2:
        return ""
    steps = [
        FfnStep(_read_bytes(geometry, shape, scenario), timed.decode_s, timed.decode_error_s)
        for geometry, timed in times.items()
        if geometry.role == "ffn" and geometry.subblock.kind == "ffn" and timed.decode_error_s is not None
    ]
    if not is_launch_bound(steps):
        return ""
    return (
        "decode steps take as long with narrow FFNs as with wide ones: launches from Python, not the GPU, set their "
        "time, and a smaller model is not faster; give scenario.engine: torch_compile or vllm, which launch a step as "
        "one graph"
    )


def _read_bytes(geometry: Geometry, shape: Shape, scenario: Scenario) -> float:
    return choice_cost(Choice(0, "ffn", geometry.subblock), shape, scenario).decode_bytes
