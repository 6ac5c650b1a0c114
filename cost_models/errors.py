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


class MissingEngineError(CostModelError, ValueError):
    """An engine is not installed; says the command that installs it."""


class UnsupportedByEngineError(CostModelError, ValueError):
    """An engine cannot run a choice, a type or a scenario; says which, and why."""


class EngineStoppedError(CostModelError, OSError):
    """An engine did not start, or ended while it was timed; says what it printed last."""
