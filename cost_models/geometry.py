"""Which subblocks run alike, so that each thing that runs is timed once.

All layers of a parent share one shape, so where a subblock stands makes no difference, and a fused run is one wide FFN.
A precision does make one. Knows the names of things only; it does not time them.
"""

from dataclasses import dataclass
from typing import Literal

from blocklib.block import SKIP, Architecture, Choice, Role, Subblock
from blocklib.kinds import kind_of


@dataclass(frozen=True)
class Geometry:
    """Work to time: a slot's, or the fixed part's: embedding, final norm, head, and the loop over the parent's layers.

    Prints to its name: `attention.kv8`, `ffn.ffn512@q4_0`, `fixed`, and `fixed@q8_0` for tables of that precision.
    """

    role: Literal["attention", "ffn", "fixed"]
    subblock: Subblock = SKIP

    def __str__(self) -> str:
        if self.role == "fixed":
            return f"fixed@{self.subblock.precision}" if self.subblock.precision else "fixed"
        return f"{self.role}.{self.subblock}"


FIXED = Geometry("fixed")


def geometry(role: Role, subblock: Subblock) -> Geometry:
    """The geometry that runs for `subblock` in an attention or FFN slot, or for the tables."""
    assert role != "block", f"{subblock} is one subblock, not a block"
    if role == "tables":
        return Geometry("fixed", subblock)
    return Geometry(role, kind_of(role, subblock).runs_as(subblock).at(subblock.precision))


def geometries(choice: Choice) -> tuple[Geometry, ...]:
    """The geometries that run for `choice`; a skipped slot runs nothing."""
    return tuple(geometry(role, subblock) for role, subblock in choice.subblocks if subblock != SKIP)


def all_geometries(architecture: Architecture) -> tuple[Geometry, ...]:
    """The geometries of a whole model, each as often as it runs, the fixed part among them."""
    found = [each for choice in architecture.choices() for each in geometries(choice)]
    return tuple(found if architecture.tables is not None else [FIXED, *found])
