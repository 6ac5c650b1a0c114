"""Measured seconds of prefill and of a decode step, of every geometry and of the fixed part.

Whole stacks are timed in the real model, each side by side with a control, the parent's own architecture; what a
geometry takes is what its stack takes over and above the known rest, per layer. On decode this came within 2 % of
whole models where a loop over a single block was 23 % off.

First five stacks tell what the fixed part and the parent's own subblocks take: no layers at all; the parent's number
of empty layers; attention alone; FFNs alone; and the control itself. Then each further geometry takes one stack: that
geometry in its slot of every layer, the parent's own in the other.

Knows what to time and what follows from it; `timing.py` holds the clock, `stack.py` the models.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from blocklib.block import SKIP, Architecture, Block
from blocklib.kinds import parent_architecture
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from cost_models.attribute import Whole, attribute
from cost_models.geometry import FIXED, Geometry
from cost_models.hardware import available_bytes, last_level_cache_bytes
from cost_models.scenario import Scenario
from cost_models.stack import Room, layers_of_stack, random_model
from cost_models.timing import Comparison, Paired, Rounds, time_models

_SHARE_OF_MEMORY = 0.4
"""Of the memory that is free, for each of the two stacks timed side by side; the rest is for activations."""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` stacks are timed; `what` is the latest, whose ratio has the relative standard error `spread`."""

    done: int
    total: int
    what: str
    rounds: int
    spread: float


@dataclass(frozen=True)
class MeasuredGeometry:
    """Seconds that one `geometry` adds to a prefill and to a decode step of the whole batch.

    `spread` is the relative standard error of the stack it came from: the error it puts into a model made of it.
    `layers` is how many the stack had.
    """

    geometry: Geometry
    prefill_s: float
    decode_s: float
    spread: float
    layers: int
    rounds: int


@dataclass(frozen=True)
class Additivity:
    """How well the parts add up: their sum over what was measured, less 1, for the parent and the worst first stack."""

    parent_prefill: float
    worst_prefill: float
    parent_decode: float = 0.0
    worst_decode: float = 0.0


@dataclass(frozen=True)
class Stack:
    """`block`, `layers` times."""

    block: Block
    layers: int

    def __str__(self) -> str:
        return f"{self.layers} x {self.block}"

    @property
    def counts(self) -> dict[str, float]:
        """How many of each part it holds: `base` is what runs without layers, `layer` an empty layer."""
        counts = {"base": 1.0, "layer": float(self.layers)}
        if self.block.attention != SKIP:
            counts[f"attention.{self.block.attention}"] = self.layers
        if self.block.ffn != SKIP:
            counts[f"ffn.{self.block.ffn}"] = self.layers
        return counts


@dataclass(frozen=True)
class Timed:
    stack: Stack
    comparison: Comparison


def measure(
    config: PuzzleNasConfig,
    geometries: Iterable[Geometry],
    scenario: Scenario,
    rounds: Rounds | None = None,
    decode: bool | None = None,
    memory_bytes: int | None = None,
) -> Iterator[Progress | MeasuredGeometry | Additivity]:
    """Measure the fixed part, the parent's own subblocks, and `geometries`, each yielded as soon as it is known.

    `config` is the parent's (`parent.model.config`). To resume, ask for what is missing: the fixed part and the own
    subblocks always come along, since all else is measured against them. `decode` says whether to time decode steps;
    None: where the scenario generates more than one token, else every `decode_s` is 0. `memory_bytes` is what may be
    used; None: what is free. Raises ValueError where a stack of one layer does not fit, TimingError as `time_models`.
    """
    shape = own_shape(config)
    own = parent_architecture(shape).blocks[0]
    device = torch.device(scenario.device)
    memory_bytes = available_bytes(device) if memory_bytes is None else memory_bytes
    room = Room(int(_SHARE_OF_MEMORY * memory_bytes), last_level_cache_bytes(device))

    def stack_of(block: Block) -> Stack:
        return Stack(block, layers_of_stack(block, shape, scenario, room))

    control = stack_of(own)
    first = [Stack(_EMPTY, 0), Stack(_EMPTY, shape.layers), stack_of(Block(own.attention, SKIP)), stack_of(Block(SKIP, own.ffn))]
    others = {_block_of(wanted, own): wanted for wanted in geometries if wanted not in (FIXED, *_own(own)) and wanted.subblock != SKIP}
    stacks = [*first, *map(stack_of, others)]
    control_model = random_model(config, control.architecture, shape, scenario)

    timed: list[Timed] = []
    for stack in stacks:
        model = random_model(config, stack.architecture, shape, scenario)
        comparison = time_models(control_model, model, scenario, rounds, decode)
        timed.append(Timed(stack, comparison))
