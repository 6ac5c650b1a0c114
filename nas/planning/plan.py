"""A plan: the need of every stage of a search on a machine, known before any work, and whether it fits.

Arithmetic on a configuration and a job. No weight is read, so that a parent may be planned for that is not here.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from nas.planning.answer import export_need, heal_need
from nas.planning.distil import distil_need
from nas.planning.hardware import Hardware
from nas.planning.inputs import PlanInputs
from nas.planning.need import StageNeed
from nas.planning.score import score_need
from nas.planning.times import measure_need, time_need

_ROOM = 0.95
"""The share of memory that a stage may take; the rest is lost between tensors."""
LAYERS, RECOMPUTE = "ray.layers_per_task", "heal.recompute"
"""Keys that change no result, so that a search sets them as memory asks for."""
_CPUS, _BATCH, _HEALED, _LORA = "ray.cpus_per_task", "distill.batch", "heal.batch", "heal.lora_rank"
_WORKERS, _ACCUMULATE = "heal.workers", "heal.accumulate"
_RANK = 64
_DTYPE = "scenario.dtype"
_FUSE, _WIDEST = "space.fuse", "space.fuse.widest"

Changes = Mapping[str, int | str | None]
"""Values of keys of the job."""

_Stage = Callable[[PlanInputs], StageNeed]


@dataclass(frozen=True)
class Planned:
    """One stage. `changes` are the settings with which it fits, by their keys in the job; none: it fits as it is.
    `need` is with them, and `as_asked` without.

    `reason` says why no settings that are known to help make it fit; "": it fits.
    """

    need: StageNeed
    changes: Changes
    as_asked: StageNeed
    reason: str = ""

    @property
    def settings(self) -> str:
        """The changes as a job file has them."""
        return ", ".join(f"{key}: {json.dumps(value)}" for key, value in self.changes.items())


@dataclass(frozen=True)
class Plan:
    machine: Hardware
    stages: tuple[Planned, ...]

    @property
    def seconds(self) -> float:
        return sum(stage.need.seconds(self.machine) for stage in self.stages)

    @property
    def disk_bytes(self) -> float:
        return sum(stage.need.disk_bytes() for stage in self.stages)

    @property
    def fits(self) -> bool:
        return not any(stage.reason for stage in self.stages)


def plan(inputs: PlanInputs) -> Plan:
    """Every stage of the job, each with the settings that make it fit."""
    request = inputs.request
    is_timed = request.measure.table is None and request.scenario.flash is None
    timed: tuple[_Stage, ...] = (measure_need, time_need) if is_timed else ()
    stages: tuple[_Stage, ...] = (distil_need, score_need, *timed, heal_need, export_need)
    planned = [_planned(inputs, stage) for stage in stages]
    return Plan(inputs.machine, tuple(each for each in planned if each.need.tasks.count))


def layers_per_task(inputs: PlanInputs, stage: str) -> int | None:
    """The number of layers with which a stage fits and is done first; None: it fits as the job has it, or no number of
    layers alone makes it fit. `stage` is "distil" or "score"."""
    changes = _planned(inputs, {"distil": distil_need, "score": score_need}[stage]).changes
    layers = changes[LAYERS] if changes.keys() == {LAYERS} else None
    assert layers is None or isinstance(layers, int)
    return layers


def needs_recomputing(inputs: PlanInputs) -> bool:
    """Whether healing fits where activations are computed again, and only there."""
    return _planned(inputs, heal_need).changes.keys() == {RECOMPUTE}


def _planned(inputs: PlanInputs, stage: _Stage) -> Planned:
    need = stage(inputs)
    if _fits(need, inputs.machine):
        return Planned(need, {}, need)
    least = need
    for alike in _changes(inputs, need.stage):
        tried = [(stage(inputs.changed(changes)), changes) for changes in _real(inputs, alike)]
        fitting = [(smaller, changes) for smaller, changes in tried if _fits(smaller, inputs.machine)]
        if fitting:
            best, changes = min(fitting, key=lambda one: one[0].seconds(inputs.machine))
            return Planned(best, changes, need)
        least = min([least, *(smaller for smaller, _ in tried)], key=lambda one: one.fullest(inputs.machine)[0])
    return Planned(least, {}, need, _reason(least, inputs.machine))


def _real(inputs: PlanInputs, alike: Iterable[Changes]) -> Iterator[Changes]:
    """Changes, less the values that the job has already."""
    for changes in alike:
        if real := {key: value for key, value in changes.items() if inputs.value(key) != value}:
            yield real


def _changes(inputs: PlanInputs, stage: str) -> Iterator[list[Changes]]:
    """Settings that need less; of those in one list the fastest is taken. Such as change no result come first."""
    request = inputs.request
    if stage == "heal" and request.heal:
        ranks: list[Changes] = [{}]
        if request.heal.lora_rank is None and not request.heals_through_rounding:
            ranks.append({_LORA: _RANK})
        for rank in ranks:
            yield [{RECOMPUTE: True, **rank}]
            for parts in _parts(inputs):
                yield [{RECOMPUTE: True, **rank, **parts}]
            yield [{RECOMPUTE: True, **rank, _HEALED: fewer} for fewer in _halves(request.heal.batch)]
    if stage in ("measure", "time the child") and inputs.scenario.dtype == "float32":
        yield [{_DTYPE: "bfloat16"}]
    if stage not in ("distil", "score"):
        return
    layers: list[Changes] = [{LAYERS: fewer} for fewer in _layer_counts(inputs)]
    one: Changes = {LAYERS: 1}
    cores: list[Changes] = [{_CPUS: more} for more in _doubles(request.ray.cpus_per_task, inputs.machine)]
    yield layers
    yield cores
    yield [{**more, **fewer} for more in cores for fewer in layers]
    if stage == "distil":
        batches: list[Changes] = [{_BATCH: fewer} for fewer in _halves(request.distill.batch)]
        for narrower in ({}, *_narrower(inputs)):
            yield [{**narrower, **fewer} for fewer in layers] if narrower else []
            yield [{**narrower, **one, **fewer} for fewer in batches]


def _parts(inputs: PlanInputs) -> Iterator[Changes]:
    """More workers for each batch, then more parts of it: rounding alone changes."""
    heal, machine = inputs.request.heal, inputs.machine
    assert heal is not None
    if inputs.needs_whole_batches:
        return
    devices = 1 if machine.is_cpu or inputs.request.heals_through_rounding else machine.devices
    workers = [count for count in _divisors(heal.batch) if heal.workers <= count <= devices]
    for count in workers:
        yield {_WORKERS: count}
    for parts in _divisors(heal.batch // max(workers, default=heal.workers)):
        yield {_WORKERS: max(workers, default=heal.workers), _ACCUMULATE: parts}


def _divisors(count: int) -> list[int]:
    return [number for number in range(2, count + 1) if count % number == 0]


def _layer_counts(inputs: PlanInputs) -> list[int]:
    """Numbers of layers that divide them among tasks otherwise."""
    layers, most = inputs.shape.layers, inputs.request.ray.layers_per_task or inputs.shape.layers
    return sorted({-(-layers // tasks) for tasks in range(1, layers + 1)} & set(range(1, most)), reverse=True)


def _narrower(inputs: PlanInputs) -> Iterator[Changes]:
    """Spaces without the widest runs of FFNs, whose fits take the most."""
    fuse, width = inputs.request.space.fuse, inputs.shape.ffn_width
    if fuse is not None:
        widest = min(fuse.longest * width, fuse.widest or fuse.longest * width)
        yield from ({_WIDEST: length * width} for length in range(fuse.longest, 1, -1) if length * width < widest)
        yield {_FUSE: None}


def _halves(count: int) -> Iterator[int]:
    while count > 1:
        count //= 2
        yield count


def _doubles(cores: float, machine: Hardware) -> Iterator[int]:
    """More cores for each task of a CPU, so that fewer run at once."""
    more = 2 * max(1, int(cores))
    while machine.is_cpu and more <= machine.devices:
        yield more
        more *= 2


def _fits(need: StageNeed, machine: Hardware) -> bool:
    held, there = need.fullest(machine)
    return held <= _ROOM * there


def _reason(need: StageNeed, machine: Hardware) -> str:
    largest = need.largest(machine)
    return largest.what + (f" ({largest.key})" if largest.key else "")
