"""The machine as far as times depend on it: its name, cores, memory, caches. Knows no model.

No name is guessed: a processor for which the system gives none is called by its architecture.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from cost_models.control_group import control_groups
from cost_models.errors import ScenarioError
from cost_models.scenario import Scenario


def machine(scenario: Scenario) -> str:
    """One line that names the machine, as far as times depend on it.

    Raises ScenarioError for a device that torch does not find here.
    """
    device = scenario.device
    if device == "cpu":
        return f"{processor()}, {scenario.threads or usable_cores()} of {usable_cores()} cores"
    kind = torch.device(device).type
    module = torch.get_device_module(kind)
    if not module.is_available():
        raise ScenarioError(f"device {device!r}: torch {torch.__version__} finds no {kind} here; use cpu")
    if kind == "mps":
        return f"{processor()} GPU"
    return f"{module.device_count()} x {module.get_device_name(device)}"


def processor() -> str:
    """The CPU's model name, else its architecture."""
    return _linux("cpuinfo", "model name") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may run on, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def cpu_threads(scenario: Scenario) -> Iterator[None]:
    """torch computes on the scenario's threads inside the `with`, and on as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(scenario.threads or usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was asked. On the CPU it has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def available_bytes(device: torch.device) -> int:
    """Memory free on `device`; of main memory, what this process's control group leaves of it. Where a system only says
    how much it has, half of that."""
    if device.type in ("cuda", "xpu"):
        free_bytes: int = torch.get_device_module(device.type).mem_get_info(device)[0]
        return free_bytes
    available = _linux("meminfo", "MemAvailable")
    if available is None:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min([int(available.removesuffix("kB")) * 1024, *(group.free_bytes for group in control_groups())])


def peak_resident_bytes(process: int) -> int:
    """The most memory that a process has held at once; where a system does not keep count, what it holds now."""
    peak = _linux(f"{process}/status", "VmHWM")
    return int(peak.removesuffix("kB")) * 1024 if peak else int(psutil.Process(process).memory_info().rss)


def total_bytes(device: torch.device) -> int:
    """Memory that `device` has, in use or free; of main memory, what this process's control group may have of it."""
    if device.type in ("cuda", "xpu"):
        held_bytes: int = torch.get_device_module(device.type).mem_get_info(device)[1]
        return held_bytes
    whole_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([whole_bytes, *(group.most_bytes for group in control_groups())])


def last_level_cache_bytes(device: torch.device) -> int:
    """The cache nearest to memory; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    if device.type == "cpu" and "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names:
        return max(0, os.sysconf("SC_LEVEL3_CACHE_SIZE"))
    return 0


def _linux(file: str, name: str) -> str | None:
    """The first value called `name` in a file of Linux's /proc; None where the system has no such thing."""
    path = Path("/proc") / file
    if not path.is_file():
        return None
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for key, _, value in pairs if key.strip() == name), None)
