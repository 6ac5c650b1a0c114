"""What a stage needs, as values: bytes by what holds them, and work. Knows no stage and no model."""

from collections.abc import Iterable
from dataclasses import dataclass

from nas.planning.hardware import Hardware

# Measured, as proportional set sizes on Linux with torch's build for CPUs: docs/scale.md.
_DRIVER_BYTES = 0.49e9
_RAY_BYTES = 0.48e9
# An assumption: what a GPU reads of memory that is mapped from a file, and not pinned.
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
class StageNeed:
    """What one stage needs.

    `each`: what a task holds on its device. `once`: what it holds there, too; on a CPU all tasks have it together.
    `main`: what is held in main memory whatever the device. `tasks` share the `flops`, and the bytes
    of the parent that are `moved` from main memory to GPUs; `at_once` of them run together, in as many of the
    `workers`, processes that stay for later stages.
    `timed_s`: what is spent on timings, at most, however fast the machine is. `parent_passes`: how often the parent
    runs, as whole passes over the stage's text.
    """

    stage: str
    each: tuple[Amount, ...] = ()
    once: tuple[Amount, ...] = ()
    main: tuple[Amount, ...] = ()
    disk: tuple[Amount, ...] = ()
    tasks: int = 1
    at_once: int = 1
    workers: int = 1
    flops: float = 0.0
    moved_bytes: float = 0.0
    timed_s: float = 0.0
    parent_passes: float = 0.0

    def device_bytes(self, machine: Hardware) -> float:
        """What the fullest device holds at the peak: on a CPU all of main memory that the search takes."""
        if machine.is_cpu:
            return self.main_bytes(machine)
        return total(self.once) + total(self.each)

    def main_bytes(self, machine: Hardware) -> float:
        """What all processes of a machine hold in main memory."""
        workers = min(self.at_once, self.tasks)
        found = _DRIVER_BYTES + _RAY_BYTES + self.workers * PROCESS_BYTES + total(self.main)
        return found + (total(self.once) + workers * total(self.each) if machine.is_cpu else 0.0)

    def disk_bytes(self) -> float:
        return total(self.disk)

    def largest(self) -> Amount:
        """What takes most of a device, or of main memory where nothing is on a device."""
        return max((*self.once, *self.each) or self.main, key=lambda held: held.held_bytes)

    def seconds(self, machine: Hardware) -> float:
        """How long the work takes at the machine's rate, and what is timed besides."""
        rate = machine.float32_flops / (machine.devices if machine.is_cpu else 1)
        together = max(1, min(self.at_once, self.tasks))
        return self.timed_s + (self.flops / rate + self.moved_bytes / _MOVED_BYTES_PER_S) / together


def total(held: Iterable[Amount]) -> float:
    return sum(each.held_bytes for each in held)
