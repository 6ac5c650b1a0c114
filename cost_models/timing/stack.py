"""Stacks for timing: the same block many times inside the real model, with random weights. A single block in a loop
stays in the processor's caches and seems far too fast; in a stack every pass runs through all layers, as in serving.
This file knows how many layers a stack needs and can have; it times nothing.
"""

import math
from dataclasses import dataclass

from blocklib.block import CACHE, SKIP, TABLES, Architecture, Block, Choice
from blocklib.kinds import parent_architecture
from blocklib.shape import Shape
from cost_models.analytic import architecture_cost, fixed_cost, mean_cost
from cost_models.errors import ScenarioError
from cost_models.geometry import geometry
from cost_models.scenario import Scenario

EMPTY = Block(SKIP, SKIP)

_MOST_LAYERS = 4
"""The most layers of a stack of small blocks, in multiples of the parent's layers."""


@dataclass(frozen=True)
class Stack:
    """`block`, `layers` times, between tables that may have a precision of their own, both the same. `cache` is the
    type of keys and values; "": the scenario's."""

    block: Block
    layers: int
    tables: str = ""
    cache: str = ""

    def __str__(self) -> str:
        behind = [TABLES.at(self.tables)] if self.tables else []
        behind += [CACHE.at(self.cache)] if self.cache else []
        return " ".join(map(str, (f"{self.layers} x {self.block}", *behind)))

    @property
    def architecture(self) -> Architecture:
        tables = (TABLES.at(self.tables),) if self.tables else ()
        return Architecture((self.block,) * self.layers, tables, self.cache)

    @property
    def counts(self) -> dict[str, float]:
        """How many of each part it holds: `base` runs without any layer, `layer` is an empty one."""
        counts = {base_name(self.tables): 1.0, "layer": float(self.layers)}
        for role, subblock in Choice(0, "block", self.block).subblocks:
            if subblock != SKIP:
                counts[str(geometry(role, subblock, self.cache))] = float(self.layers)
        return counts


def base_name(precision: str) -> str:
    """The part of a stack that runs without any layer, by the precision of its tables; "": the scenario's."""
    return f"base@{precision}" if precision else "base"


@dataclass(frozen=True)
class Room:
    """Limits of the device: the memory that a stack may use, and the last-level cache (0: unknown, or none)."""

    memory_bytes: int
    cache_bytes: int


def stack_of(block: Block, shape: Shape, scenario: Scenario, room: Room) -> Stack:
    """The number of layers of `block` in a stack: the parent's number, or as many as fit into memory. It is up to four
    times larger if the stack would fit into the last-level cache but the parent does not: in a child, the other layers
    evict the block between two passes. If the parent itself fits into the cache, a stack may too. Raises ScenarioError
    if not even one layer fits into memory.
    """
    whole = architecture_cost(parent_architecture(shape), shape, scenario)
    parent_bytes = whole.metrics(scenario)["memory_bytes"]
    fixed_bytes = fixed_cost(shape, scenario).weight_bytes
    layer_bytes = mean_cost(Choice(0, "block", block), shape, scenario).metrics(scenario)["memory_bytes"]
    assert layer_bytes > 0, f"{block} holds nothing: any number of layers will do"
    layers = shape.layers
    if parent_bytes > room.cache_bytes:
        overflowing = math.ceil(min(parent_bytes, 2 * room.cache_bytes) / layer_bytes)
        layers = min(max(layers, overflowing), _MOST_LAYERS * layers)
    layers = min(layers, int((room.memory_bytes - fixed_bytes) // layer_bytes))
    if layers < 1:
        raise ScenarioError(
            f"one layer {block} takes {fixed_bytes + layer_bytes:.0f} bytes with embedding, head and the cache of "
            f"{scenario}, and a stack may take {room.memory_bytes}; lower the batch or the tokens, or leave it out"
        )
    return Stack(block, layers)
