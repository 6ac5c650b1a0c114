"""The plan of a search that is about to run on this machine: it warns of a stage that may not fit, and refuses one that
cannot.

A plan is an estimate, and too high where the child is not known yet, or runs are still to be chosen. So a search is
refused only where a stage is planned to take twice the memory that there is.
"""

from blocklib.loading import Readable
from nas.errors import JobError
from nas.job.request import Request
from nas.job.units import format_quantity
from nas.planning.hardware import Hardware, memory_here
from nas.planning.inputs import PlanInputs
from nas.planning.look import inputs_of
from nas.planning.plan import LAYERS, RECOMPUTE, Planned, plan

_HOPELESS = 2.0


def check_plan(request: Request, found: Readable) -> None:
    """Raise JobError where a stage is planned to take twice what this machine has, whatever a search sets by itself
    where the job leaves it open."""
    if not _is_planned(request):
        return
    room = memory_here(request.scenario.device, request.home)
    for stage in plan(inputs_of(request, found, room)).stages:
        least = stage.as_asked if _keys(stage, request) else stage.need
        held, there = least.fullest(room)
        if held > _HOPELESS * there:
            key = next(iter(_keys(stage, request)), "parent")
            raise JobError(f"{key}: {_said(stage, room)}")


def plan_warnings(inputs: PlanInputs) -> list[str]:
    """A line for each stage that is planned to take more memory than there is."""
    if not _is_planned(inputs.request):
        return []
    warned = [stage for stage in plan(inputs).stages if stage.reason or _keys(stage, inputs.request)]
    return [f"memory may run out: {_said(stage, inputs.machine)}" for stage in warned]


def _is_planned(request: Request) -> bool:
    """A plan is made for one kind of device."""
    return bool(request.gpus_per_task) == (request.scenario.device != "cpu")


def _keys(stage: Planned, request: Request) -> list[str]:
    """The keys that would have to be changed: a search sets the others by itself."""
    left_open = {LAYERS} if request.ray.layers_per_task is None else set()
    left_open |= {RECOMPUTE} if request.heal and request.heal.recompute is None else set()
    return [key for key in stage.changes if key not in left_open]


def _said(stage: Planned, room: Hardware) -> str:
    held, there = (format_quantity("memory", count) for count in stage.as_asked.fullest(room))
    remedy = f"it fits with {stage.settings}" if stage.changes else f"most of it is {stage.reason}"
    return f"the stage {stage.need.stage} is planned to take {held} of {there}; {remedy} (see nas plan)"
