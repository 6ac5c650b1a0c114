"""A plan: what every stage of a search needs on a machine, known before any work, and whether it fits.

Arithmetic on a configuration and a job. No weight is read, so that a parent may be planned for that is not here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from nas.planning.answer import export_need, heal_need
from nas.planning.distil import distil_need
from nas.planning.machine import Machine
from nas.planning.need import Need
from nas.planning.score import score_need
from nas.planning.setting import Setting
from nas.planning.times import measure_need, time_need

_ROOM = 0.95
"""The share of a device's memory that a stage may take; the rest is the driver's, and lost between tensors."""
_LAYERS, _BATCH, _HEALED = "ray.layers_per_task", "distill.batch", "heal.batch"
_FUSE, _WIDEST = "space.fuse", "space.fuse.widest"

Changes = Mapping[str, int | None]
"""Values of keys of the job."""

_Stage = Callable[[Setting], Need]


@dataclass(frozen=True)
class Planned:
    """One stage. `changes` are the settings with which it fits, by their keys in the job; none: it fits as it is.

    `reason` says why it cannot fit whatever they are; "": it can.
    """

    need: Need
    changes: Changes
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    machine: Machine
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


def plan(setting: Setting) -> Plan:
    """Every stage of the job, each with the least change of its settings that makes it fit."""
    request = setting.request
    is_timed = request.measure.table is None and request.scenario.flash is None
    timed: tuple[_Stage, ...] = (measure_need, time_need) if is_timed else ()
    stages: tuple[_Stage, ...] = (distil_need, score_need, *timed, heal_need, export_need)
    return Plan(setting.machine, tuple(_planned(setting, stage) for stage in stages))


def layers_per_task(setting: Setting) -> int | None:
    """The most layers with which training and scoring fit; None: they fit as the job has it, or nothing helps."""
    changes = [_planned(setting, stage).changes for stage in (distil_need, score_need)]
    counts = [change[_LAYERS] for change in changes if change.keys() == {_LAYERS}]
    return min((count for count in counts if count is not None), default=None)


def _planned(setting: Setting, stage: _Stage) -> Planned:
    need = stage(setting)
    if _fits(need, setting.machine):
        return Planned(need, {})
    smallest = need
    for changes in _changes(setting, need.stage):
        smallest = stage(setting.changed(changes))
        if _fits(smallest, setting.machine):
            return Planned(smallest, changes)
    return Planned(smallest, {}, _reason(smallest))


def _changes(setting: Setting, stage: str) -> Iterator[Changes]:
    """Settings that need less and less. The number of layers changes no result, so it comes first."""
    request = setting.request
    if stage == "heal" and request.heal:
        yield from ({_HEALED: fewer} for fewer in _halves(request.heal.batch))
    if stage not in ("distil", "score"):
        return
    layers = list(_halves(request.ray.layers_per_task or setting.shape.layers)) or [1]
    yield from ({_LAYERS: fewer} for fewer in layers)
    if stage == "distil":
        batches = list(_halves(request.distill.batch))
        yield from ({_LAYERS: 1, _BATCH: fewer} for fewer in batches)
        for narrower in _narrower(setting):
            yield from (narrower | {_LAYERS: fewer} for fewer in layers)
            yield from (narrower | {_LAYERS: 1, _BATCH: fewer} for fewer in batches)


def _narrower(setting: Setting) -> Iterator[dict[str, int | None]]:
    """Spaces without the widest runs of FFNs, whose fits take the most."""
    fuse = setting.request.space.fuse
    if fuse is not None:
        yield from ({_WIDEST: length * setting.shape.ffn_width} for length in range(fuse.longest - 1, 1, -1))
        yield {_FUSE: None}


def _halves(count: int) -> Iterator[int]:
    while count > 1:
        count //= 2
        yield count


def _fits(need: Need, machine: Machine) -> bool:
    return need.device_bytes(machine) <= _ROOM * machine.device_bytes


def _reason(need: Need) -> str:
    largest = need.largest()
    return largest.what + (f" ({largest.key})" if largest.key else "")
