"""The machines that a plan is made for: what each device holds, and how fast it computes. Knows no model."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from blocklib.products import Products, check_products, gradients_of
from cost_models.errors import ScenarioError
from cost_models.hardware import machine, synchronize, total_bytes, usable_cores
from cost_models.scenario import Scenario
from nas.errors import PlanError
from nas.job.units import did_you_mean
from nas.planning.disk import free_bytes

MIB = 1 << 20
_REACHED = 0.75
"""The share of a GPU's peak that large products in float32 reach. An assumption: no GPU was timed for it."""
_REACHED_BY_TENSOR_CORES = 0.4
"""The same of tensor cores, which wait for memory more often. Also an assumption."""
_DISK_BYTES = 2 * 10**12
"""The free disk of a machine that is not here. An assumption as well."""


@dataclass(frozen=True)
class Hardware:
    """`devices` GPUs that hold `device_bytes`, and compute so many operations a second, each; or the cores of a CPU,
    whose memory is `device_bytes`, and which compute that together. Rates are those of products of large matrices;
    `passes_flops` is that in the type of `compute.precision`, None: float32's. `main_bytes` is the main memory; None:
    it is not known. `disk_bytes` is what is free where the search has its home.
    """

    name: str
    devices: int
    device_bytes: int
    float32_flops: float
    float64_flops: float
    main_bytes: int | None = None
    is_cpu: bool = False
    passes_flops: float | None = None
    disk_bytes: int = _DISK_BYTES


@dataclass(frozen=True)
class _Gpu:
    """A GPU as its maker describes it: memory as the driver reports it, and the peaks; in float32 without tensor cores,
    in TF32 and bfloat16 with them, of dense matrices."""

    memory_mib: int
    float32: float
    float64: float
    tf32: float
    bfloat16: float


# Peaks are those of the makers' data sheets, of SXM modules where there are some.
_CARDS = {
    "a100": _Gpu(81_920, 19.5e12, 19.5e12, 156e12, 312e12),
    "a100-40gb": _Gpu(40_960, 19.5e12, 19.5e12, 156e12, 312e12),
    "h100": _Gpu(81_559, 67e12, 67e12, 494e12, 989e12),
    "h200": _Gpu(143_771, 67e12, 67e12, 494e12, 989e12),
    "l4": _Gpu(23_034, 30.3e12, 0.47e12, 60e12, 121e12),
    "l40s": _Gpu(46_068, 91.6e12, 1.43e12, 183e12, 362e12),
    "rtx4090": _Gpu(24_564, 82.6e12, 1.29e12, 82.6e12, 165e12),
}
_PRODUCTS = 5
_NAMED = re.compile(r"(?P<card>.+?)(?:x(?P<count>[1-9][0-9]{0,4}))?", re.ASCII)


def machine_named(name: str, products: Products = "float32") -> Hardware:
    """`h100x8`: eight of a card that we know, whose passes multiply in `products`. Raises PlanError for any other."""
    match = _NAMED.fullmatch(name.strip().lower())
    card = None if match is None else _CARDS.get(match["card"])
    if match is None or card is None:
        known = did_you_mean(match["card"] if match else name, _CARDS)
        raise PlanError(f"--hardware: {name!r} is no known GPU, alone or with a number as in h100x8; {known}")
    count = int(match["count"] or 1)
    rates = (_REACHED * card.float32, _REACHED * card.float64)
    passes = {"tf32": card.tf32, "bfloat16": card.bfloat16}.get(products)
    found = Hardware(f"{count} x {match['card']}", count, card.memory_mib * MIB, *rates)
    return found if passes is None else replace(found, passes_flops=_REACHED_BY_TENSOR_CORES * passes)


def memory_here(device: str, home: Path) -> Hardware:
    """The CPU or the GPUs here, of a speed that nobody asks for, and the disk that `home` is or will be on."""
    kind, main = torch.device(device), total_bytes(torch.device("cpu"))
    count = usable_cores() if kind.type == "cpu" else int(torch.get_device_module(kind.type).device_count())
    return Hardware(device, count, total_bytes(kind), 1.0, 1.0, main, kind.type == "cpu", disk_bytes=free_bytes(home))


def this_machine(scenario: Scenario, home: Path, products: Products = "float32") -> Hardware:
    """The CPU or the GPUs here, as fast as they were in products of matrices just now: a part of a second. Raises
    PlanError where torch finds no such device, SettingError where it lacks the type of `products`."""
    try:
        name = machine(scenario)
    except ScenarioError as error:
        raise PlanError(
            f"scenario.device: {error}; or name the machine, as in --hardware h100x8 (known: {', '.join(_CARDS)})"
        ) from error
    kind = torch.device(scenario.device)
    check_products(products, kind)
    with gradients_of(products):
        passes = None if products == "float32" else _products_flops(kind, "float32" if products == "tf32" else products)
    return replace(
        memory_here(scenario.device, home), name=f"this machine: {name}", passes_flops=passes,
        float32_flops=_products_flops(kind, "float32"), float64_flops=_products_flops(kind, "float64"),
    )  # fmt: skip


def _products_flops(device: torch.device, dtype: str) -> float:
    """The median of a few products. MPS has no float64: the CPU's rate stands for it."""
    if device.type == "mps" and dtype == "float64":
        return _products_flops(torch.device("cpu"), dtype)
    size = 1024 if device.type == "cpu" else 8192
    one, other = (torch.rand(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    seconds = []
    for _ in range(_PRODUCTS):
        synchronize(device)
        started = perf_counter()
        one @ other
        synchronize(device)
        seconds.append(perf_counter() - started)
    return float(2 * size**3 / median(seconds))
