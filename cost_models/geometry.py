"""Which subblocks run alike, so that each thing that runs is timed once.

All layers of a parent share one shape, so where a subblock stands makes no difference, and a fused run is one wide FFN.
Where some of its layers see a window of tokens, stacks have them in the parent's order: a cost is the mean over layers.
A precision does make one, and so does the type of keys and values, to attention that keeps any. Knows the names of
things only; it does not time them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from blocklib.block import CACHE, SKIP, Architecture, Choice, Role, Subblock
from blocklib.kinds import kind_of
from cost_models.scenario import KV_CACHES

_USUAL = {names[0] for names in KV_CACHES.values()}
"""The type of keys and values of each engine that has a choice, where nobody chooses."""


@dataclass(frozen=True)
class Geometry:
    """Work to time: a slot's, or the fixed part's: embedding, final norm, head, and the loop over the parent's layers.

    `cache` is the type of its keys and values; "": the scenario's, or there are none. Prints to its name:
    `attention.kv8`, `attention.kv8 cache@q8_0`, `ffn.ffn512@q4_0`, `fixed`, and `fixed@q8_0` for tables of that
    precision. The fixed part with a head that is a matrix of its own is `head@q8_0`; the `embedding@q4_0` beside it
    takes no time.
    """

    role: Literal["attention", "ffn", "fixed", "head", "embedding"]
    subblock: Subblock = SKIP
    cache: str = ""

    def __str__(self) -> str:
        if self.is_around:
            return f"{self.role}@{self.subblock.precision}" if self.subblock.precision else self.role
        return f"{self.role}.{self.subblock}{f' {CACHE.at(self.cache)}' if self.cache else ''}"

    @property
    def is_around(self) -> bool:
        """Whether it is around the layers, and runs once."""
        return self.role in ("fixed", "head", "embedding")

    @property
    def is_timed(self) -> bool:
        """Whether it takes time to speak of: a pass reads a row of the embedding for each token."""
        return self.role != "embedding"

    def runs_as(self, dtype: str) -> "Geometry":
        """What runs for it where weights are held in `dtype` if nothing else is said: a precision that is the same
        makes no difference."""
        if self.subblock.precision != dtype or not self.is_timed:
            return self
        return FIXED if self.is_around else replace(self, subblock=self.subblock.unrounded)


FIXED = Geometry("fixed")


def geometry(role: Role, subblock: Subblock, cache: str = "") -> Geometry:
    """The geometry that runs for `subblock` in an attention or FFN slot, or for tables, where keys and values are of
    the type `cache`: the engine's usual one, and "", are the scenario's where the type is chosen."""
    assert role not in ("block", "cache"), f"{subblock} is no one subblock of a layer, and no tables"
    if role == "tables":
        return Geometry("fixed", subblock)
    if role == "embedding" or role == "head":
        return Geometry(role, subblock)
    kind, role = kind_of(role, subblock), "attention" if role == "attention" else "ffn"
    is_kept = kind.keeps_cache and cache not in _USUAL
    return Geometry(role, kind.runs_as(subblock).at(subblock.precision), cache if is_kept else "")


def geometries(choice: Choice, cache: str = "") -> tuple[Geometry, ...]:
    """The geometries that run for `choice`; a skipped slot runs nothing, and neither does a type of keys and values."""
    runs = (part for part in choice.subblocks if part[0] != "cache" and part[1] != SKIP)
    return tuple(geometry(role, subblock, cache) for role, subblock in runs)


def geometries_of(choices: Iterable[Choice], caches: Iterable[str]) -> tuple[Geometry, ...]:
    """The geometries that run for any of `choices`, each once: with keys and values of the scenario's type, and then of
    each of `caches`."""
    types = ("", *caches)
    return tuple(dict.fromkeys(part for choice in choices for cache in types for part in geometries(choice, cache)))


def all_geometries(architecture: Architecture) -> tuple[Geometry, ...]:
    """The geometries of a whole model, each as often as it runs, the fixed part among them."""
    found = [each for choice in architecture.choices() for each in geometries(choice, architecture.cache)]
    return tuple(found if architecture.tables else [FIXED, *found])
