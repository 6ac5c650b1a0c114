"""The need of a stage, as values: bytes by what holds them, and work. Knows no stage and no model."""

from collections.abc import Iterable
from dataclasses import dataclass

from nas.planning.hardware import Hardware

# Measured, as proportional set sizes on Linux with torch's build for CPUs: docs/scale.md.
_DRIVER_BYTES = 0.49e9
_RAY_BYTES = 0.48e9
# An assumption: the bytes a GPU reads of memory that is mapped from a file, and not pinned.
_MOVED_BYTES_PER_S = 10e9
PROCESS_BYTES = 0.41e9
"""A worker's, with its libraries."""


@dataclass(frozen=True)
class Amount:
    """Bytes that something takes. `key` is the key of a job that changes how many; "": the parent alone decides."""

    what: str
    held_bytes: float
    key: str = ""


@dataclass(frozen=True)
class Operations:
    """Operations of passes, in the type of `compute.precision`, others in float32 and in float64, bytes of the parent
    that go from main memory to GPUs, and the seconds that timings take at most, however fast the machine is."""

    flops: float = 0.0
    float32_flops: float = 0.0
    float64_flops: float = 0.0
    moved_bytes: float = 0.0
    timed_s: float = 0.0


@dataclass(frozen=True)
class Tasks:
    """The tasks of a stage, of which `at_once` run together, `per_device` on one GPU. A task of a CPU takes `cores`;
    None: all. `workers` are the processes that are there: those of the stage before end when they waited a while."""

    count: int = 1
    at_once: int = 1
    per_device: int = 1
    cores: float | None = None
    workers: int = 1

    @property
    def together(self) -> int:
        return max(1, min(self.count, self.at_once))


@dataclass(frozen=True)
class StageNeed:
    """The need of one stage.

    `each`: held by a task on its device. `once`: held there, too; on a CPU all tasks have it together. `main`: held in
    main memory whatever the device.
    """

    stage: str
    each: tuple[Amount, ...] = ()
    once: tuple[Amount, ...] = ()
    main: tuple[Amount, ...] = ()
    disk: tuple[Amount, ...] = ()
    tasks: Tasks = Tasks()
    work: Operations = Operations()

    def device_bytes(self, machine: Hardware) -> float:
        """The bytes on the fullest device at the peak: on a CPU all of main memory that the search takes."""
        if machine.is_cpu:
            return self.main_bytes(machine)
        return min(self.tasks.per_device, self.tasks.together) * (total(self.once) + total(self.each))

    def main_bytes(self, machine: Hardware) -> float:
        """The main memory that all processes of a machine hold."""
        found = processes_bytes(self.tasks.workers) + total(self.main)
        return found + (total(self.once) + self.tasks.together * total(self.each) if machine.is_cpu else 0.0)

    def fullest(self, machine: Hardware) -> tuple[float, float]:
        """The bytes held and those there are: of a device or, where that is known and fuller, of main memory."""
        found = [(self.device_bytes(machine), float(machine.device_bytes))]
        if machine.main_bytes is not None:
            found.append((self.main_bytes(machine), float(machine.main_bytes)))
        return max(found, key=lambda pair: pair[0] / pair[1])

    def disk_bytes(self) -> float:
        return total(self.disk)

    def largest(self, machine: Hardware) -> Amount:
        """The amount that takes most of a device, or of main memory where nothing is on a device."""
        times = self.tasks.together if machine.is_cpu else 1
        each = [Amount(held.what, times * held.held_bytes, held.key) for held in self.each]
        here = [*self.once, *each, *(self.main if machine.is_cpu else ())] or list(self.main)
        return max(here, key=lambda held: held.held_bytes)

    def seconds(self, machine: Hardware) -> float:
        """The time that the work takes at the machine's rates, and timings besides."""
        share = 1.0
        if machine.is_cpu:  # of the cores that all tasks together keep busy
            cores = machine.devices if self.tasks.cores is None else self.tasks.cores
            share = min(1.0, self.tasks.together * cores / machine.devices)
        at_once = 1 if machine.is_cpu else min(self.tasks.together, machine.devices)
        work = self.work
        computed = work.flops / (machine.passes_flops or machine.float32_flops)
        computed += work.float32_flops / machine.float32_flops + work.float64_flops / machine.float64_flops
        return work.timed_s + (computed / share + work.moved_bytes / _MOVED_BYTES_PER_S) / at_once


def processes_bytes(workers: int) -> float:
    """The bytes of all processes before any work."""
    return _DRIVER_BYTES + _RAY_BYTES + workers * PROCESS_BYTES


def total(held: Iterable[Amount]) -> float:
    return sum(each.held_bytes for each in held)
