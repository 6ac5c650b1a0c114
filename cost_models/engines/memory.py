"""Whether memory holds two models at once, each in a process of its own. If it does not, the processes take turns.
Knows no engine.
"""

from collections.abc import Iterable

import torch

from cost_models.energy.meter import Meter
from cost_models.errors import ScenarioError
from cost_models.hardware import available_bytes

_SHARE_OF_MEMORY = 0.8
"""The share of free memory that models may fill together."""


def fit_together(held_bytes: Iterable[int], device: str = "cpu") -> bool:
    """Whether the memory that is free on `device` holds models of these sizes at once; otherwise they take turns."""
    return sum(held_bytes) <= _SHARE_OF_MEMORY * available_bytes(torch.device(device))


def check_energy(stays: bool, meter: Meter | None) -> None:
    """Raise ScenarioError where a meter is read and processes take turns: it would count their starts."""
    if meter is not None and not stays:
        raise ScenarioError(
            "energy cannot be measured: free memory does not hold both models, so their processes take turns, and the "
            "meter would count every start; free memory, give a smaller scenario, or leave out budget.energy"
        )
