"""The devices of a job's tasks."""

import torch

from nas.planning.hardware import memory_here
from nas.planning.inputs import PlanInputs
from nas.stages.prepare import Job
from nas.text.token_files import Ids


def tensor(ids: Ids, device: str) -> torch.Tensor:
    """Token ids on a device. On a CPU those of a file stay there, and read-only ones, which torch takes none of, are
    copied."""
    return torch.from_numpy(ids if ids.flags.writeable else ids.copy()).to(device)


def device_of(job: Job) -> str:
    """The device of workers. Ray shows a task only its own GPUs."""
    return "cuda" if job.request.gpus_per_task else "cpu"


def gpus_to_time(job: Job) -> int:
    """The number of GPUs for a timing: those that it times on."""
    return job.scenario.tensor_parallel if job.scenario.device.startswith("cuda") else 0


def plan_inputs(job: Job) -> PlanInputs:
    """To plan a job's stages on this machine."""
    room = memory_here(device_of(job), job.home)
    return PlanInputs(job.request, job.parent.config, job.scenario, job.parent.stored_bytes, room)
