"""The inputs of a plan: a parent's sizes, from the headers of its files or from a configuration alone."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from blocklib.checkpoint import inspect
from blocklib.families import shape_of
from blocklib.kinds import parent_architecture
from blocklib.loading import Readable, readable, reading
from blocklib.parent import child_config
from blocklib.shape import Shape
from nas.errors import PlanError
from nas.job.request import Request
from nas.job.scenario import scenario_of
from nas.planning.hardware import Hardware, machine_named, this_machine
from nas.planning.inputs import FLOAT32, PlanInputs
from nas.text.parent_folder import parent_folder

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def inputs_of_job(request: Request, hardware: str | None, parent_config: Path | None) -> PlanInputs:
    """`hardware` None: this machine. `parent_config` None: the job's own parent, whose weights stay unread.

    Raises PlanError, and what looking at a checkpoint raises.
    """
    if hardware is not None:
        request = _on_gpus(request)
    machine = this_machine(request.scenario.device) if hardware is None else machine_named(hardware)
    if parent_config is None:
        return inputs_of(request, readable(inspect(parent_folder(request.checkpoint, request.home))), machine)
    with reading(parent_config, "give a config.json of a supported family"):
        config = AutoConfig.from_pretrained(parent_config, trust_remote_code=False)
        shape = shape_of(config)
    stored = getattr(config.dtype, "itemsize", None) or FLOAT32
    return _setting(request, config, shape, stored, machine)


def inputs_of(request: Request, found: Readable, machine: Hardware) -> PlanInputs:
    """The inputs of a parent that is here."""
    stored = max(_BYTES.get(tensor.dtype, FLOAT32) for tensor in found.tensors.values())
    return _setting(request, found.config, found.shape, stored, machine)


def _setting(request: Request, config: Any, shape: Shape, stored_bytes: int, machine: Hardware) -> PlanInputs:
    own = child_config(config, parent_architecture(shape), shape)
    return PlanInputs(request, own, scenario_of(request), stored_bytes, machine)


def _on_gpus(request: Request) -> Request:
    """The same job on GPUs. Raises PlanError where its engine runs on CPUs."""
    if request.engine == "llama_cpp":
        raise PlanError(
            f"{request.name} is served by llama.cpp on a CPU, and --hardware names GPUs; leave it out, to plan for "
            "this machine"
        )
    scenario = request.scenario.model_copy(update={"device": "cuda", "threads": None})
    return request.model_copy(update={"scenario": scenario})
