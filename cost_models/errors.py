"""Mistakes in a quantity, a scenario, or a measurement under it. Standard library only."""

from nas.errors import NasError


class CostModelError(NasError):
    """The base of this room's errors."""


class QuantityError(CostModelError, ValueError):
    """A text is no quantity of its metric: it has no number, no unit, or another metric's unit."""


class ScenarioError(CostModelError, ValueError):
    """A scenario has a value that makes no sense, or needs a device or memory that the machine does not have."""


class TimingError(CostModelError, ValueError):
    """A model computed no finite logits, the clock gave no time, or the meter no joules."""


class NoMeterError(CostModelError, ValueError):
    """This machine has no energy meter for a device, or does not let this process read it."""
