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

    Prints to its name: `attention.kv8`, `ffn.ffn512@q4_0`, `fixed`, and `fixed@q8_0` for tables of that precision. The
    fixed part with a head that is a matrix of its own is `head@q8_0`; the `embedding@q4_0` beside it takes no time.
    """

    role: Literal["attention", "ffn", "fixed", "head", "embedding"]
    subblock: Subblock = SKIP

    def __str__(self) -> str:
        if self.is_around:
            return f"{self.role}@{self.subblock.precision}" if self.subblock.precision else self.role
        return f"{self.role}.{self.subblock}"

    @property
    def is_around(self) -> bool:
        """Whether it is around the layers, and runs once."""
        return self.role in ("fixed", "head", "embedding")

    @property
    def is_timed(self) -> bool:
        """Whether it takes time to speak of: a pass reads a row of the embedding for each token."""
        return self.role != "embedding"


FIXED = Geometry("fixed")


def geometry(role: Role, subblock: Subblock) -> Geometry:
    """The geometry that runs for `subblock` in an attention or FFN slot, or for tables."""
    assert role != "block", f"{subblock} is one subblock, not a block"
    if role == "tables":
        return Geometry("fixed", subblock)
    if role == "embedding" or role == "head":
        return Geometry(role, subblock)
    return Geometry(role, kind_of(role, subblock).runs_as(subblock).at(subblock.precision))


def geometries(choice: Choice) -> tuple[Geometry, ...]:
    """The geometries that run for `choice`; a skipped slot runs nothing."""
    return tuple(geometry(role, subblock) for role, subblock in choice.subblocks if subblock != SKIP)


def all_geometries(architecture: Architecture) -> tuple[Geometry, ...]:
    """The geometries of a whole model, each as often as it runs, the fixed part among them."""
    found = [each for choice in architecture.choices() for each in geometries(choice)]
    return tuple(found if architecture.tables else [FIXED, *found])
