"""Stacks: the same block again and again inside the real model, with random weights, to be timed.

A block alone in a loop stays in the processor's caches and comes out far too fast; in a stack every pass walks through
all layers, as serving does. Knows how many layers a stack needs and can have; it times nothing.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blocklib.block import Architecture, Block, Choice
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.parent import child_config, model_with
from blocklib.shape import Shape
from cost_models.analytic import architecture_cost, choice_cost, fixed_cost
from cost_models.scenario import Scenario

_MOST_LAYERS = 4
"""A stack of small blocks has at most so many times the parent's layers."""


@dataclass(frozen=True)
class Room:
    """What a stack has to fit: `memory_bytes` at most; and where the parent overflows it, more than `cache_bytes`."""

    memory_bytes: int
    cache_bytes: int


def layers_of_stack(block: Block, parent: Architecture, shape: Shape, scenario: Scenario, room: Room) -> int:
    """How many layers a stack of `block` has: as many as the parent, or as fit into memory.

    More where the stack would stay in the last-level cache though the parent does not (up to four times as many), since
    in a child the other layers would push it out between two passes. Not where the parent itself stays in it.
    Raises ValueError where not even one layer fits into memory.
    """
    fixed_bytes = fixed_cost(shape, scenario.dtype).metrics(scenario)["memory_bytes"]
    layer_bytes = choice_cost(Choice(0, "block", block), shape, scenario.dtype).metrics(scenario)["memory_bytes"]
    parent_bytes = architecture_cost(parent, shape, scenario.dtype).metrics(scenario)["memory_bytes"]
    layers = shape.layers
    if parent_bytes > room.cache_bytes and layer_bytes > 0:
        overflowing = math.ceil(min(parent_bytes, 2 * room.cache_bytes) / layer_bytes)
        layers = min(max(layers, overflowing), _MOST_LAYERS * shape.layers)
    if layer_bytes > 0:
        layers = min(layers, int((room.memory_bytes - fixed_bytes) // layer_bytes))
    if layers < 1:
        raise ValueError(
            f"one layer {block} needs {fixed_bytes + layer_bytes:.0f} bytes with embedding, head and the cache of "
            f"{scenario}; {room.memory_bytes} are available: lower the batch or the tokens, or leave it out"
        )
    return layers


def random_model(config: PuzzleNasConfig, architecture: Architecture, shape: Shape, scenario: Scenario) -> PuzzleNasForCausalLM:
    """`architecture` with random weights, on the scenario's device. `config` is the parent's.

    The architecture need not span the parent's layers. Random, not constant: how fast a GPU multiplies depends on the
    numbers; norms are ones, so that nothing vanishes or overflows.
    """
    own = child_config(config, architecture, shape)
    with torch.device("meta"):
        empty = PuzzleNasForCausalLM._from_config(own).state_dict()
    dtype = getattr(torch, scenario.dtype)
    seeded = torch.Generator(scenario.device).manual_seed(0)

    def fill(name: str, like: Tensor) -> Tensor:
        if "norm" in name:
            return torch.ones(like.shape, dtype=dtype, device=scenario.device)
        tensor = torch.empty(like.shape, dtype=dtype, device=scenario.device)
        return tensor.uniform_(-0.05, 0.05, generator=seeded)

    return model_with(own, {name: fill(name, tensor) for name, tensor in empty.items()}).to(scenario.device)
