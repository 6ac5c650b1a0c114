"""Measured seconds of prefill and of a decode step, of every geometry and of the fixed part.

Whole stacks are timed in the real model, each in turns with a control, the parent's own architecture. The time of a
geometry is the time of its stack less the known rest, per layer. (For decode such times were within 2 % of whole
models; a loop over a single block was 23 % off.)

Five stacks come first and give the times of the fixed part and the parent's own subblocks: no layers; the parent's
number of empty layers; attention alone; FFNs alone; and the control. Then each further geometry takes one stack: that
geometry in its slot of every layer, the parent's own in the other; tables of another precision take one around the
parent's own layers. Keys and values of another type are in the same stack as the attention that keeps them.

A time that is too noisy, or impossible, is measured again; its result states the remaining noise. This file knows what
to time and how to compute costs from it; `pair.py` has the clock, `stack.py` the models.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median
from time import perf_counter

import torch

from blocklib.block import SKIP, Block
from blocklib.kinds import parent_block
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from cost_models.engines.engine import Engine, Runnable
from cost_models.engines.torch_eager import TORCH
from cost_models.geometry import FIXED, Geometry
from cost_models.hardware import available_bytes, last_level_cache_bytes
from cost_models.metrics import error_of
from cost_models.scenario import Scenario
from cost_models.timing.least_squares import Whole, attribute
from cost_models.timing.measured_geometry import MeasuredGeometry
from cost_models.timing.pair import ROUNDS, Comparison, Paired, Rounds
from cost_models.timing.quality import ANY, Quality
from cost_models.timing.stack import EMPTY, Room, Stack, base_name, stack_of
from cost_models.timing.suspicions import suspicions

_LEAST_SPREAD = 0.005
"""The smallest error that a ratio can have, because a few rounds may agree by chance."""

SHARE_OF_MEMORY = 0.4
"""The share of free memory for each of the two stacks timed side by side; the rest is for activations."""

_NO_JOULES = dict.fromkeys(("prefill_j", "decode_j", "prefill_error_j", "decode_error_j"), 0.0)
"""The energy of a part that takes no time."""

_MOST_TAKES = 3
"""The number of times that a suspicious time is measured, at most: it may be right."""


@dataclass(frozen=True)
class TimedStack:
    """`done` of `total` stacks are timed; `what` is the latest, and `spread` the standard error of its ratio.

    `again` says why it was timed again, where it was.
    """

    done: int
    total: int
    what: str
    rounds: int
    spread: float
    again: str = ""


@dataclass(frozen=True)
class Residual:
    """The sum of the parts less the measured time, as a share of the parent's time, for the parent and for the worst of
    the first stacks. The parts are fitted to the parent, so only `worst` shows whether they add up."""

    parent: float
    worst: float


@dataclass(frozen=True)
class Additivity:
    """How well parts add up to wholes; `decode` is None where decode steps were not timed."""

    prefill: Residual
    decode: Residual | None = None


def measure(
    config: PuzzleNasConfig,
    geometries: Sequence[Geometry],
    scenario: Scenario,
    rounds: Rounds = ROUNDS,
    quality: Quality = ANY,
    engine: Engine = TORCH,
) -> Iterator[TimedStack | MeasuredGeometry | Additivity]:
    """Measure the fixed part, the parent's own subblocks, and `geometries`. Yields each as soon as it is known, and
    once more if it was measured again: the last is the one that counts.

    `config` is the parent's (`parent.model.config`). To resume, pass the missing geometries: the fixed part and the
    parent's own subblocks are always measured too, because the others are relative to them. What runs alike is timed
    once: a part in the precision of `scenario.dtype` has the time of the part without one.

    A time worse than `quality` allows, or suspicious (`suspicions`), is measured again while there is patience, and
    yielded as it is then. Raises ScenarioError where a stack of one layer does not fit, and what `engine` raises.
    """
    shape = own_shape(config)
    own = parent_block(shape)
    room = _room(scenario)
    own_parts = {
        FIXED: Stack(EMPTY, shape.layers),
        Geometry("attention", own.attention): stack_of(Block(own.attention, SKIP), shape, scenario, room),
        Geometry("ffn", own.ffn): stack_of(Block(SKIP, own.ffn), shape, scenario, room),
    }
    names: dict[Geometry, list[Geometry]] = {known: [known] for known in own_parts}
    for wanted in dict.fromkeys(geometries):
        if not wanted.is_timed:
            yield MeasuredGeometry(wanted, 0.0, 0, shape.layers, 0.0, **_NO_JOULES)
        elif wanted not in own_parts and wanted.subblock != SKIP:
            names.setdefault(wanted.runs_as(scenario.dtype), []).append(wanted)
    further = {
        wanted: _of(wanted, stack_of(_in_place(wanted, own), shape, scenario.keeping(wanted.cache), room))
        for wanted in names
        if wanted not in own_parts
    }
    control = stack_of(own, shape, scenario, room)
    with engine.random(config, control.architecture, scenario) as control_model:
        bench = _Bench(_Setting(config, scenario, rounds, quality, engine), control, control_model)
        for event in _events(bench, own_parts, further):
            if isinstance(event, MeasuredGeometry):
                yield from (replace(event, geometry=name) for name in names[event.geometry])
            else:
                yield event


def _events(
    bench: "_Bench", own_parts: Mapping[Geometry, Stack], further: Mapping[Geometry, Stack]
) -> Iterator[TimedStack | MeasuredGeometry | Additivity]:
    """`own_parts` are the stacks of the fixed part and the parent's own subblocks, `further` those of the others."""
    first = [Stack(EMPTY, 0), *own_parts.values()]
    total = len(first) + len(further)
    for done, stack in enumerate(first, 1):
        bench.time(stack)
        yield bench.progress(done, total, stack)
    for stack, why in bench.again(lambda: bench.doubts(first, own_parts, bench.own_times(first, own_parts))):
        yield bench.progress(len(first), total, stack, why)
    own_times = bench.own_times(first, own_parts)
    yield from own_times.values()
    parts = bench.parts(first)
    yield Additivity(*(parts[name].residual() for name in ("prefill_s", "decode_s") if name in parts))
    for done, (wanted, stack) in enumerate(further.items(), len(first) + 1):
        bench.time(stack)
        yield bench.progress(done, total, stack)
        yield bench.time_of(wanted, stack, parts)

    def times() -> dict[Geometry, MeasuredGeometry]:
        return own_times | {wanted: bench.time_of(wanted, stack, parts) for wanted, stack in further.items()}

    again = set()
    for stack, why in bench.again(lambda: bench.doubts(list(further.values()), further, times())):
        again.add(stack)
        yield bench.progress(total, total, stack, why)
    for wanted, timed in times().items():
        if further.get(wanted) in again:
            yield timed


@dataclass(frozen=True)
class _Setting:
    """How stacks are timed; `config` is the parent's."""

    config: PuzzleNasConfig
    scenario: Scenario
    rounds: Rounds
    quality: Quality
    engine: Engine


class _Bench:
    """Stacks timed beside the control, each as often as needed, and the times of the parts."""

    def __init__(self, setting: _Setting, control: Stack, control_model: Runnable):
        self._setting, self._quality = setting, setting.quality
        self._control, self._control_model = control, control_model
        self._layers = own_shape(setting.config).layers
        self._comparisons: dict[Stack, Comparison] = {}
        self._takes: Counter[Stack] = Counter()
        self._left_s = setting.quality.patience_s

    def time(self, stack: Stack) -> None:
        """Once, or once more."""
        how = self._setting
        with how.engine.random(how.config, stack.architecture, how.scenario) as model:
            found = how.engine.time(self._control_model, model, how.scenario, how.rounds)
        earlier = self._comparisons.get(stack)
        self._comparisons[stack] = found if earlier is None else self._quality.of_both(earlier, found)
        self._takes[stack] += 1

    def progress(self, done: int, total: int, stack: Stack, again: str = "") -> TimedStack:
        comparison = self._comparisons[stack]
        return TimedStack(done, total, str(stack), comparison.rounds, comparison.spread, again)

    def again(self, doubts: Callable[[], Mapping[Stack, str]]) -> Iterator[tuple[Stack, str]]:
        """Time doubtful stacks again until there are none, or the patience is used up."""
        while found := doubts():
            for stack, why in found.items():
                if self._left_s <= 0:
                    return
                started = perf_counter()
                self.time(stack)
                self._left_s -= perf_counter() - started
                yield stack, why

    def doubts(
        self,
        stacks: Sequence[Stack],
        stack_of_geometry: Mapping[Geometry, Stack],
        times: Mapping[Geometry, MeasuredGeometry],
    ) -> dict[Stack, str]:
        """The `stacks` to time again, with reasons. If some are bad, they come alone, because they can make others look
        suspicious."""
        faults = {
            stack: f"{stack} has {fault}"
            for stack in stacks
            if (fault := self._quality.fault(self._spread(stack), self._comparisons[stack].contention))
        }
        return faults or {
            stack: f"{geometry} {why}"
            for geometry, why in suspicions(times, self._has_decode).items()
            if (stack := stack_of_geometry.get(geometry)) is not None and self._takes[stack] < _MOST_TAKES
        }

    def own_times(self, first: Sequence[Stack], own: Mapping[Geometry, Stack]) -> dict[Geometry, MeasuredGeometry]:
        """The fixed part's and the parent's own subblocks', from the first stacks."""
        parts = self.parts(first)
        return {
            known: self._measured(
                known, stack, parts, {name: part.amount_of(known, self._layers) for name, part in parts.items()}
            )
            for known, stack in own.items()
        }

    def time_of(self, wanted: Geometry, stack: Stack, parts: Mapping[str, "_FieldParts"]) -> MeasuredGeometry:
        """The time of a further geometry, from its stack and the first stacks."""
        paired = self._comparisons[stack].parts
        amounts = {
            name: part.with_(stack, paired[name]).amount_of(wanted, self._layers) for name, part in parts.items()
        }
        return self._measured(wanted, stack, parts, amounts)

    def parts(self, first: Sequence[Stack]) -> dict[str, "_FieldParts"]:
        return _parts(self._control, {stack: self._comparisons[stack] for stack in first})

    @property
    def _has_decode(self) -> bool:
        return next(iter(self._comparisons.values())).decode is not None

    def _measured(
        self, geometry: Geometry, stack: Stack, parts: Mapping[str, "_FieldParts"], amounts: Mapping[str, float]
    ) -> MeasuredGeometry:
        comparison = self._comparisons[stack]
        # All layers of a stack share the error of its time; the fixed part is the only part of its stack.
        shares = 1 if geometry.is_around else stack.layers
        errors = {
            error_of(name): parts[name].control * paired.ratio * _least(paired.spread) / shares
            for name, paired in comparison.parts.items()
        }
        return MeasuredGeometry(
            geometry, self._spread(stack), comparison.rounds, stack.layers, contention=comparison.contention, **amounts,
            **errors,
        )  # fmt: skip

    def _spread(self, stack: Stack) -> float:
        """The stack's error in a model with as many layers as the control, as a share of the control's time."""
        scale = self._control.layers / (stack.layers or self._control.layers)
        return max(paired.spread * paired.ratio * scale for paired in self._comparisons[stack].parts.values())


@dataclass(frozen=True)
class _FieldParts:
    """One measured field of a cost: its stacks, the first of which is the control, and the control's amount."""

    control: float
    wholes: tuple[Whole, ...]

    def with_(self, stack: Stack, paired: Paired) -> "_FieldParts":
        """A copy with one stack more. Its amount is scaled to the control's first timing, so that a drift since then
        cancels."""
        measured = Whole(stack.counts, paired.ratio * self.control, _least(paired.spread))
        return _FieldParts(self.control, (*self.wholes, measured))

    def amount_of(self, geometry: Geometry, layers: int) -> float:
        """`layers` of the parent, all of whose empty layers count as the fixed part."""
        parts = attribute(self.wholes)
        if not geometry.is_around:
            return parts[str(geometry)]
        return parts[base_name(geometry.subblock.precision)] + layers * parts["layer"]

    def residual(self) -> Residual:
        parts = attribute(self.wholes)
        residuals = [(whole.predicted(parts) - whole.amount) / self.control for whole in self.wholes]
        return Residual(residuals[0], max(residuals, key=abs))


def _parts(control: Stack, comparisons: Mapping[Stack, Comparison]) -> dict[str, _FieldParts]:
    """The result of the first stacks, for each field that was measured."""
    parts = {}
    for name in next(iter(comparisons.values())).parts:
        pairs = [comparison.parts[name] for comparison in comparisons.values()]
        amount = median(chain.from_iterable(paired.control_samples for paired in pairs))
        # All ratios are relative to the control, so it has no spread of its own. The sum of the parts equals its time
        # almost exactly, so the parent's prediction equals its measurement.
        part = _FieldParts(amount, (Whole(control.counts, amount, spread=0.0),))
        for stack, paired in zip(comparisons, pairs, strict=True):
            part = part.with_(stack, paired)
        parts[name] = part
    return parts


def _least(spread: float) -> float:
    return max(spread, _LEAST_SPREAD)


def _in_place(wanted: Geometry, own: Block) -> Block:
    """The parent's block with one geometry in its slot, or as it is around tables."""
    if wanted.is_around:
        return own
    if wanted.role == "attention":
        return Block(wanted.subblock, own.ffn)
    return Block(own.attention, wanted.subblock)


def _of(wanted: Geometry, stack: Stack) -> Stack:
    """The stack with what of the geometry is no part of a layer: its tables, or the type of its keys and values."""
    return replace(stack, tables=wanted.subblock.precision if wanted.is_around else "", cache=wanted.cache)


def _room(scenario: Scenario) -> Room:
    device = torch.device(scenario.device)
    return Room(int(SHARE_OF_MEMORY * available_bytes(device)), last_level_cache_bytes(device))
