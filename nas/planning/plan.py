"""A plan: what every stage of a search needs on a machine, known before any work, and whether it fits.

Arithmetic on a configuration and a job. No weight is read, so that a parent may be planned for that is not here.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from nas.planning.answer import export_need, heal_need
from nas.planning.distil import distil_need
from nas.planning.hardware import Hardware
from nas.planning.inputs import PlanInputs
from nas.planning.need import StageNeed
from nas.planning.score import score_need
from nas.planning.times import measure_need, time_need

_ROOM = 0.95
"""The share of a device's memory that a stage may take; the rest is the driver's, and lost between tensors."""
LAYERS, RECOMPUTE = "ray.layers_per_task", "heal.recompute"
"""Keys that change no result, so that a search sets them as memory asks for."""
_BATCH, _HEALED, _LORA = "distill.batch", "heal.batch", "heal.lora_rank"
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

    `reason` says why it cannot fit whatever they are; "": it can.
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
    """Every stage of the job, each with the least change of its settings that makes it fit."""
    request = inputs.request
    is_timed = request.measure.table is None and request.scenario.flash is None
    timed: tuple[_Stage, ...] = (measure_need, time_need) if is_timed else ()
    stages: tuple[_Stage, ...] = (distil_need, score_need, *timed, heal_need, export_need)
    planned = [_planned(inputs, stage) for stage in stages]
    return Plan(inputs.machine, tuple(each for each in planned if each.need.tasks))


def layers_per_task(inputs: PlanInputs) -> int | None:
    """The most layers with which training and scoring fit; None: they fit as the job has it, or nothing helps."""
    changes = [_planned(inputs, stage).changes for stage in (distil_need, score_need)]
    counts = [change[LAYERS] for change in changes if change.keys() == {LAYERS}]
    return min((count for count in counts if isinstance(count, int)), default=None)


def needs_recomputing(inputs: PlanInputs) -> bool:
    """Whether healing fits only where activations are computed again."""
    return _planned(inputs, heal_need).changes.keys() == {RECOMPUTE}


def _planned(inputs: PlanInputs, stage: _Stage) -> Planned:
    need = stage(inputs)
    if _fits(need, inputs.machine):
        return Planned(need, {}, need)
    smallest = need
    for changes in _changes(inputs, need.stage):
        smallest = stage(inputs.changed(changes))
        if _fits(smallest, inputs.machine):
            return Planned(smallest, changes, need)
    return Planned(smallest, {}, need, _reason(smallest))


def _changes(inputs: PlanInputs, stage: str) -> Iterator[Changes]:
    """Settings that need less and less. The number of layers changes no result, so it comes first."""
    request = inputs.request
    if stage == "heal" and request.heal:
        yield {RECOMPUTE: True}
        yield from ({RECOMPUTE: True, _HEALED: fewer} for fewer in _halves(request.heal.batch))
        if not request.heals_through_rounding:
            yield {RECOMPUTE: True, _LORA: _RANK}
            yield from ({RECOMPUTE: True, _LORA: _RANK, _HEALED: fewer} for fewer in _halves(request.heal.batch))
    if stage in ("measure", "time the child") and inputs.scenario.dtype == "float32":
        yield {_DTYPE: "bfloat16"}
    if stage not in ("distil", "score"):
        return
    layers = list(_halves(request.ray.layers_per_task or inputs.shape.layers)) or [1]
    yield from ({LAYERS: fewer} for fewer in layers)
    if stage == "distil":
        batches = list(_halves(request.distill.batch))
        yield from ({LAYERS: 1, _BATCH: fewer} for fewer in batches)
        for narrower in _narrower(inputs):
            yield from ({**narrower, LAYERS: fewer} for fewer in layers)
            yield from ({**narrower, LAYERS: 1, _BATCH: fewer} for fewer in batches)


def _narrower(inputs: PlanInputs) -> Iterator[Changes]:
    """Spaces without the widest runs of FFNs, whose fits take the most."""
    fuse = inputs.request.space.fuse
    if fuse is not None:
        yield from ({_WIDEST: length * inputs.shape.ffn_width} for length in range(fuse.longest - 1, 1, -1))
        yield {_FUSE: None}


def _halves(count: int) -> Iterator[int]:
    while count > 1:
        count //= 2
        yield count


def _fits(need: StageNeed, machine: Hardware) -> bool:
    return need.device_bytes(machine) <= _ROOM * machine.device_bytes


def _reason(need: StageNeed) -> str:
    largest = need.largest()
    return largest.what + (f" ({largest.key})" if largest.key else "")
