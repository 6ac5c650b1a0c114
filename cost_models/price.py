"""Arithmetic and measured seconds put together: the whole cost of a choice, of the fixed part, of an architecture.

Knows no clocks: it looks up what `measured.py` measured, and computes nothing in place of what is missing.
"""

from collections.abc import Mapping

from blocklib.block import Architecture, Choice
from blocklib.shape import Shape
from cost_models import analytic
from cost_models.cost import Cost
from cost_models.errors import NotMeasuredError
from cost_models.geometry import FIXED, Geometry, geometries
from cost_models.measured import MeasuredGeometry
from cost_models.scenario import Scenario

Measured = Mapping[Geometry, MeasuredGeometry]


def choice_cost(choice: Choice, shape: Shape, scenario: Scenario, measured: Measured) -> Cost:
    """The cost that `choice` adds to a child. Raises NotMeasuredError naming the geometry that is missing."""
    parts = (_measured(geometry, measured) for geometry in geometries(choice))
    return sum(parts, analytic.choice_cost(choice, shape, scenario))


def fixed_cost(shape: Shape, scenario: Scenario, measured: Measured) -> Cost:
    """The cost of every child before its subblocks. Raises NotMeasuredError."""
    return analytic.fixed_cost(shape, scenario) + _measured(FIXED, measured)


def architecture_cost(architecture: Architecture, shape: Shape, scenario: Scenario, measured: Measured) -> Cost:
    """The cost of a whole child. Raises NotMeasuredError."""
    choices = (choice_cost(choice, shape, scenario, measured) for choice in architecture.choices())
    return sum(choices, fixed_cost(shape, scenario, measured))


def _measured(geometry: Geometry, measured: Measured) -> Cost:
    if geometry not in measured:
        raise NotMeasuredError(f"{geometry} was not measured; measured: {', '.join(map(str, measured)) or 'nothing'}")
    return measured[geometry].cost
