"""The machines that a plan is made for: what each device holds, and how fast it computes. Knows no model."""

import re
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

import torch

from cost_models.hardware import processor, synchronize, total_bytes, usable_cores
from nas.errors import PlanError
from nas.job.units import did_you_mean

MIB = 1 << 20
_REACHED = 0.75
"""The share of a GPU's peak that large products in float32 reach. An assumption: no GPU was timed for it."""


@dataclass(frozen=True)
class Hardware:
    """`devices` GPUs that hold `device_bytes` and compute `float32_flops` a second each; or the cores of a CPU, whose
    memory is `device_bytes`, and which compute that together. Rates are those of products of large matrices.
    """

    name: str
    devices: int
    device_bytes: int
    float32_flops: float
    is_cpu: bool = False


@dataclass(frozen=True)
class _Gpu:
    """A GPU as its maker describes it: memory as the driver reports it, and the peak in float32 without sparsity."""

    memory_mib: int
    peak_flops: float


# Peaks are those of the makers' data sheets, of SXM modules where there are some.
_CARDS = {
    "a100": _Gpu(81_920, 19.5e12),
    "a100-40gb": _Gpu(40_960, 19.5e12),
    "h100": _Gpu(81_559, 67e12),
    "h200": _Gpu(143_771, 67e12),
    "l4": _Gpu(23_034, 30.3e12),
    "l40s": _Gpu(46_068, 91.6e12),
    "rtx4090": _Gpu(24_564, 82.6e12),
}
_PRODUCTS = 5
_NAMED = re.compile(r"(?P<card>.+?)(?:x(?P<count>[1-9][0-9]{0,4}))?", re.ASCII)


def machine_named(name: str) -> Hardware:
    """`h100x8`: eight of a card that we know. Raises PlanError for any other."""
    match = _NAMED.fullmatch(name.strip().lower())
    card = None if match is None else _CARDS.get(match["card"])
    if match is None or card is None:
        known = did_you_mean(match["card"] if match else name, _CARDS)
        raise PlanError(f"--hardware: {name!r} is no known GPU, alone or with a number as in h100x8; {known}")
    count = int(match["count"] or 1)
    return Hardware(f"{count} x {match['card']}", count, card.memory_mib * MIB, _REACHED * card.peak_flops)


def memory_here(device: str) -> Hardware:
    """The CPU or the GPUs here, of a speed that nobody asks for."""
    kind = torch.device(device)
    count = usable_cores() if kind.type == "cpu" else int(torch.get_device_module(kind.type).device_count())
    return Hardware(device, count, total_bytes(kind), 1.0, is_cpu=kind.type == "cpu")


def this_machine(device: str) -> Hardware:
    """The CPU or the GPUs here, as fast as they were in a product of matrices just now: a part of a second. Raises
    PlanError where torch finds no such device."""
    kind = torch.device(device)
    if kind.type == "cpu":
        name = f"this machine: {processor()}, {usable_cores()} cores"
        return replace(memory_here(device), name=name, float32_flops=_products_flops(kind))
    module = torch.get_device_module(kind.type)
    if not module.is_available():
        cards = ", ".join(_CARDS)
        raise PlanError(
            f"scenario.device: torch {torch.__version__} finds no {kind.type} here; name the machine, as in "
            f"--hardware h100x8 (known: {cards})"
        )
    found = memory_here(device)
    name = f"this machine: {found.devices} x {module.get_device_name(kind)}"
    return replace(found, name=name, float32_flops=_products_flops(kind))


def _products_flops(device: torch.device) -> float:
    """The median of a few products."""
    size = 1024 if device.type == "cpu" else 8192
    one, other = (torch.rand(size, size, device=device) for _ in range(2))
    seconds = []
    for _ in range(_PRODUCTS):
        synchronize(device)
        started = perf_counter()
        one @ other
        synchronize(device)
        seconds.append(perf_counter() - started)
    return float(2 * size**3 / median(seconds))
