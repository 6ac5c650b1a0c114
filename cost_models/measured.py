"""Measured seconds of prefill and of a decode step, of every geometry and of the fixed part.

Whole stacks are timed in the real model, each side by side with a control, the parent's own architecture; what a
geometry takes is what its stack takes over and above the known rest, per layer. (On decode such slopes came within 2 %
of whole models, where a loop over a single block was 23 % off.)

Five stacks come first, and tell what the fixed part and the parent's own subblocks take: no layers; the parent's number
of empty layers; attention alone; FFNs alone; and the control. Then each further geometry takes one stack: that geometry
in its slot of every layer, the parent's own in the other.

Knows what to time and what follows from it; `timing.py` holds the clock, `stack.py` the models.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from statistics import median

import torch

from blocklib.block import SKIP, Block
from blocklib.kinds import parent_block
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from cost_models.attribute import Whole, attribute
from cost_models.geometry import FIXED, Geometry
from cost_models.hardware import available_bytes, last_level_cache_bytes
from cost_models.scenario import Scenario
from cost_models.stack import EMPTY, Room, Stack, random_model, stack_of
from cost_models.timing import Comparison, Paired, Rounds, time_models

_LEAST_SPREAD = 0.005
"""A few rounds may agree by chance; no ratio is taken to be surer than this."""

_SHARE_OF_MEMORY = 0.4
"""Of what is free, for each of the two stacks timed side by side; the rest is for activations."""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` stacks are timed; `what` is the latest, and `spread` the standard error of its ratio."""

    done: int
    total: int
    what: str
    rounds: int
    spread: float


@dataclass(frozen=True)
class MeasuredGeometry:
    """Seconds that one `geometry` adds to a prefill, and to a decode step, of the whole batch.

    0 where it takes too little to be told from nothing. `spread` is the relative standard error of the stack it came
    from, `layers` long: the error it puts into a model full of it. `decode_s` is 0 where decode steps were not timed.
    `taken` is the share of the cores needed that other programs kept busy meanwhile.
    """

    geometry: Geometry
    spread: float
    rounds: int
    layers: int
    prefill_s: float
    decode_s: float = 0.0
    taken: float = field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class Residual:
    """Sum of the parts less what was timed, as a share of the parent's time: of the parent, and of the first stack that
    fits worst. The parts are fitted to the parent, so `worst` is what tells whether they add up."""

    parent: float
    worst: float


@dataclass(frozen=True)
class Additivity:
    """How well parts add up to wholes; `decode` is None where decode steps were not timed."""

    prefill: Residual
    decode: Residual | None = None


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
    None: where the scenario generates more than one token. `memory_bytes` is what may be used; None: what is free.
    Raises ValueError where a stack of one layer does not fit, TimingError as `time_models` does.
    """
    shape = own_shape(config)
    own = parent_block(shape)
    room = _room(scenario, memory_bytes)
    own_parts = {
        FIXED: Stack(EMPTY, shape.layers),
        Geometry("attention", own.attention): stack_of(Block(own.attention, SKIP), shape, scenario, room),
        Geometry("ffn", own.ffn): stack_of(Block(SKIP, own.ffn), shape, scenario, room),
    }
    further = {
        wanted: stack_of(_in_place(wanted, own), shape, scenario, room)
        for wanted in geometries
        if wanted not in own_parts and wanted.subblock != SKIP
    }
    first = [Stack(EMPTY, 0), *own_parts.values()]
    total = len(first) + len(further)
    control = stack_of(own, shape, scenario, room)
    control_model = random_model(config, control.architecture, scenario)

    def timed(stack: Stack) -> Comparison:
        model = random_model(config, stack.architecture, scenario)
        return time_models(control_model, model, scenario, rounds, decode)

    comparisons: dict[Stack, Comparison] = {}
    for done, stack in enumerate(first, 1):
        comparisons[stack] = timed(stack)
        yield Progress(done, total, str(stack), comparisons[stack].rounds, comparisons[stack].spread)
    phases = _phases(control, comparisons)
    for known, stack in own_parts.items():
        seconds = [phase.seconds_of(known, shape.layers) for phase in phases]
        yield _measured(known, stack, comparisons[stack], seconds)
    yield Additivity(*(phase.residual() for phase in phases))
    for done, (wanted, stack) in enumerate(further.items(), len(first) + 1):
        comparison = timed(stack)
        yield Progress(done, total, str(stack), comparison.rounds, comparison.spread)
        pairs = zip(phases, comparison.phases, strict=True)
        seconds = [phase.with_(stack, paired).seconds_of(wanted, shape.layers) for phase, paired in pairs]
        yield _measured(wanted, stack, comparison, seconds)


@dataclass(frozen=True)
class _Phase:
    """Prefill or decode: the stacks timed in it, of which the first is the control, and how long that took."""

    control_s: float
    wholes: tuple[Whole, ...]

    def with_(self, stack: Stack, paired: Paired) -> "_Phase":
        """This with one stack more. Times are of the moment the control was taken at, so a drift since then cancels."""
        timed = Whole(stack.counts, paired.ratio * self.control_s, max(paired.spread, _LEAST_SPREAD))
        return _Phase(self.control_s, (*self.wholes, timed))

    def seconds_of(self, geometry: Geometry, layers: int) -> float:
        """`layers` of the parent, all of whose empty layers count as the fixed part."""
        parts = attribute(self.wholes)
        return parts["base"] + layers * parts["layer"] if geometry == FIXED else parts[str(geometry)]

    def residual(self) -> Residual:
        parts = attribute(self.wholes)
        residuals = [(whole.predicted(parts) - whole.seconds) / self.control_s for whole in self.wholes]
        return Residual(residuals[0], max(residuals, key=abs))


def _phases(control: Stack, comparisons: Mapping[Stack, Comparison]) -> list[_Phase]:
    """What the first stacks tell, for each phase that was timed."""
    phases = []
    for pairs in zip(*(comparison.phases for comparison in comparisons.values()), strict=True):
        control_s = median(chain.from_iterable(paired.control_samples_s for paired in pairs))
        # All ratios are relative to the control, so it has no spread of its own. The parts meet its time all but
        # exactly: what the parent is predicted to take is what it took.
        phase = _Phase(control_s, (Whole(control.counts, control_s, spread=0.0),))
        for stack, paired in zip(comparisons, pairs, strict=True):
            phase = phase.with_(stack, paired)
        phases.append(phase)
    return phases


def _measured(geometry: Geometry, stack: Stack, comparison: Comparison, seconds: list[float]) -> MeasuredGeometry:
    timed = comparison.spread, comparison.rounds, stack.layers
    return MeasuredGeometry(geometry, *timed, *seconds, taken=comparison.taken)


def _in_place(wanted: Geometry, own: Block) -> Block:
    """The parent's block with one geometry in its slot."""
    if wanted.role == "attention":
        return Block(wanted.subblock, own.ffn)
    return Block(own.attention, wanted.subblock)


def _room(scenario: Scenario, memory_bytes: int | None) -> Room:
    device = torch.device(scenario.device)
    usable_bytes = available_bytes(device) if memory_bytes is None else memory_bytes
    return Room(int(_SHARE_OF_MEMORY * usable_bytes), last_level_cache_bytes(device))
