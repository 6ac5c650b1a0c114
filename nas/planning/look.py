"""The inputs of a plan: a parent's sizes, from the headers of its files or from a configuration alone."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from blocklib.checkpoint import bytes_of_a_number, inspect
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


def inputs_of_job(request: Request, hardware: str | None, parent_config: Path | None) -> PlanInputs:
    """`hardware` None: this machine. `parent_config` None: the job's own parent, whose weights stay unread: of a folder
    the headers are, of a hub id the configuration alone. A GGUF file is unpacked, as for a search.

    Raises PlanError, and whatever looking at a checkpoint raises.
    """
    if hardware is not None:
        request = _on_gpus(request)
    scenario = scenario_of(request)
    if bool(request.gpus_per_task) != (scenario.device != "cpu"):
        raise PlanError(
            f"{request.name} trains on one kind of device and serves on another (ray.gpus_per_task: "
            f"{request.gpus_per_task:g}, scenario.device: {scenario.device}), and a plan is made for one"
        )
    products = request.compute.precision
    machine = this_machine(scenario, request.home, products) if hardware is None else machine_named(hardware, products)
    if parent_config is not None and not parent_config.is_file():
        raise PlanError(f"--parent-config: {parent_config} is no file; give the config.json of a parent")
    if parent_config is None:
        folder = parent_folder(request.checkpoint, request.home, weights=False)
        if Path(request.checkpoint).exists():
            return inputs_of(request, readable(inspect(folder)), machine)
        parent_config = folder / "config.json"
    with reading(parent_config, "give a config.json of a supported family"):
        config = AutoConfig.from_pretrained(parent_config, trust_remote_code=False)
        shape = shape_of(config)
    return _inputs(request, config, shape, getattr(config.dtype, "itemsize", None) or FLOAT32, machine)


def inputs_of(request: Request, found: Readable, machine: Hardware) -> PlanInputs:
    """The inputs of a parent that is here."""
    return _inputs(request, found.config, found.shape, bytes_of_a_number(found.tensors.values()), machine)


def _inputs(request: Request, config: Any, shape: Shape, stored_bytes: float, machine: Hardware) -> PlanInputs:
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
