"""Energy meters: what counts the joules that a device takes. Standard library only, until a meter is opened.

A meter counts all that its device takes, idle power and other programs included. So a model and its control are
measured in turns on the same device, as they are timed.
"""

from pathlib import Path
from typing import Protocol

from cost_models.errors import NoMeterError

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the counters of a CPU."""


class Meter(Protocol):
    """Counts joules."""

    @property
    def sample_s(self) -> float:
        """How long something must run so that the meter's own steps do not show."""

    def joules(self) -> float:
        """Taken since the meter was opened. Read it more often than its counter wraps around, every few minutes."""


def meter_of(device: str, powercap: Path = POWERCAP) -> Meter:
    """The meter of one of torch's devices. Raises NoMeterError, saying what to do."""
    kind = device.partition(":")[0]
    if kind == "cpu":
        from cost_models.energy.rapl import Rapl

        return Rapl(powercap)
    if kind == "cuda":
        from cost_models.energy.nvml import Nvml, uuid_of

        return Nvml(uuid_of(device))
    raise NoMeterError(f"no energy meter fits {kind}; leave energy out of the budget, or measure on cpu or cuda")
