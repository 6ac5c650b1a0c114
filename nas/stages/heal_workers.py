"""Healing by several workers at once, which divide the child, its moments and every batch among them.

They end with a last checkpoint, which the task that makes the child finds: so one process reads what several wrote, as
it does where a search goes on with another number of workers. `_heal_share` runs on every worker.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from blocklib.errors import NotFiniteError
from blocklib.parent import Parent
from blocklib.products import multiply_in
from nas.cluster.tasks import Cluster, Report
from nas.errors import JobError
from nas.files.lock import alone
from nas.job.request import Request
from nas.stages.child_parts import ChildParts
from nas.stages.devices import tensor
from nas.stages.heal_settings import Healing, HealingRun
from nas.terminal.progress import Heard
from nas.text.token_files import Ids

WAITS = "waiting for another process that builds the same child"


@dataclass(frozen=True)
class HealTask:
    """`checkpoints` is the folder of the unfinished healing, which every worker sees; `device` is "cpu" or "cuda"."""

    parent: Parent
    distillation: Ids
    parts: ChildParts
    healing: Healing
    run: HealingRun
    checkpoints: Path
    device: str


def check_healing(request: Request, cluster: Cluster) -> None:
    """Before a search's work: raise ResourceError where the cluster cannot hold `heal.workers` at once, and JobError
    where a program that is to get the losses is not installed."""
    heal = request.heal
    if heal is None:
        return
    if heal.workers > 1:
        cluster.gang(heal.workers, bool(request.gpus_per_task))
    if heal.report_to:
        from transformers.integrations.integration_utils import get_available_reporting_integrations

        there = get_available_reporting_integrations()
        for name in heal.report_to:
            if name not in there:
                raise JobError(f"heal.report_to: {name} is not installed here; install it, or leave it out")


def heal_together(cluster: Cluster, task: HealTask, file: Path, workers: int, progress: Heard) -> None:
    """Heal a child up to its last checkpoint, unless `file`, the child's, is there. Raises NotFiniteError where the
    loss is not finite, and as `Cluster.run_together` does."""
    task.checkpoints.parent.mkdir(parents=True, exist_ok=True)
    with alone(f"{task.checkpoints}.lock", partial(progress, 0, 0, 0, WAITS)):
        if not file.is_file():
            gang, folder = cluster.gang(workers, task.device == "cuda"), task.checkpoints / "gang"
            cluster.run_together(_heal_share, task, gang, folder, ends=NotFiniteError, progress=progress)


def _heal_share(task: HealTask, report: Report) -> None:
    report(doing="loading the trainer")
    from nas.stages.heal import heal  # It takes seconds to load, and only here.

    # Ray Train has chosen the GPU of this worker.
    device = f"cuda:{torch.cuda.current_device()}" if task.device == "cuda" else task.device
    parent = task.parent.on(device, whole=False)
    child = multiply_in(parent.products, task.parts.unrounded(parent))
    text = tensor(task.distillation, "cpu")  # The trainer takes each batch to the device.
    for event in heal(parent.model, child, text, task.healing, task.checkpoints, task.run):
        report(event.done_tokens, event.total_tokens)
