"""What can be wrong with a scenario or with what is measured under it. Standard library only."""

from nas.errors import NasError


class CostModelError(NasError):
    """The base of this room's errors."""


class ScenarioError(CostModelError, ValueError):
    """A scenario has a value that makes no sense, or needs a device or memory that the machine does not have."""


class TimingError(CostModelError, ValueError):
    """A model computed no finite logits, or the clock gave no time."""


class NotMeasuredError(CostModelError, LookupError):
    """Nobody measured the time that was asked for."""
