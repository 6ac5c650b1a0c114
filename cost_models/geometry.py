"""Which subblocks run alike, so that each thing that runs is timed once.

All layers of a parent share one shape, so where a subblock stands makes no difference, and a fused run is one wide FFN.
Knows the names of things only; it does not time them.
"""

from dataclasses import dataclass
from typing import Literal

from blocklib.block import SKIP, Choice, Role, Subblock
from blocklib.kinds import kind_of


@dataclass(frozen=True)
class Geometry:
    """Work to time: a slot's, or the fixed part's: embedding, final norm, head, and the loop over the parent's layers.

    Prints to its name: `attention.kv8`, `ffn.ffn512`, `fixed`.
    """

    role: Literal["attention", "ffn", "fixed"]
    subblock: Subblock = SKIP

    def __str__(self) -> str:
        return "fixed" if self.role == "fixed" else f"{self.role}.{self.subblock}"


FIXED = Geometry("fixed")


def geometry(role: Role, subblock: Subblock) -> Geometry:
    """The geometry that runs for `subblock` in an attention or FFN slot."""
    assert role != "block", f"{subblock} is one subblock, not a block"
    return Geometry(role, kind_of(role, subblock).runs_as(subblock))


def geometries(choice: Choice) -> tuple[Geometry, ...]:
    """The geometries that run for `choice`; a skipped slot runs nothing."""
    return tuple(geometry(role, subblock) for role, subblock in choice.subblocks if subblock != SKIP)
