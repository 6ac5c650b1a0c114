"""The parent's activations on a job's texts: cached once, by all workers together, for what fits, trains and scores.

They lie in a folder of this process in the job's home, and go with it. `_pass` runs on workers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blocklib.activations import Activations, CachedActivations, ComputedActivations, cache, cached_numbers
from blocklib.parent import Parent
from nas.cluster.tasks import STARTING, Report
from nas.planning.disk import free_bytes, leaves_room
from nas.stages.context import Context
from nas.stages.devices import device_of, tensor
from nas.terminal.progress import bar
from nas.text.token_files import Ids
from nas.text.tokens import Split


@dataclass(frozen=True)
class TextActivations:
    """A folder with the activations on the first sequences of a text."""

    folder: Path
    sequences: int

    def of(self, parent: Parent, ids: Ids) -> CachedActivations:
        """Those on the text's head `ids`, which is no longer."""
        assert len(ids) <= self.sequences
        return CachedActivations.of(parent.model, tensor(ids, "cpu"), self.folder)

    def of_all(self, parent: Parent, ids: Ids) -> Activations:
        """Those on `ids`, computed each time where the folder holds only the text's head."""
        if len(ids) <= self.sequences:
            return self.of(parent, ids)
        return ComputedActivations(parent.model, tensor(ids, "cpu"))


@dataclass(frozen=True)
class _PassTask:
    """Batches of `batch` sequences of a text, to run the parent over."""

    parent: Parent
    ids: Ids
    folder: Path
    batch: int
    batches: range
    device: str


def activations_on(context: Context, split: Split, head: int, alone: float = math.inf) -> TextActivations:
    """The activations on a text of the job. They are those on its first `head` sequences where all would take too much
    of the disk, or more work than to run the parent over `alone` tokens. Runs the parent where they are not there
    yet."""
    folder = context.folder.path / split
    whole = folder / "sequences"
    if whole.is_file():
        return TextActivations(folder, int(whole.read_text()))
    job, shape, resources = context.job, context.job.parent.shape, context.job.request.ray
    ids: Ids = getattr(job.tokens, split)
    held_bytes = job.parent.dtype.itemsize * cached_numbers(shape.layers, shape.hidden, ids.size)
    whole_text = alone >= ids.size and leaves_room(held_bytes, free_bytes(job.home))
    sequences, batch = len(ids) if whole_text else min(len(ids), head), job.request.distill.batch
    tokens, count = sequences * ids.shape[1], -(-sequences // batch)
    with bar(context.console, f"run the parent over {split} text", "tokens", tokens, STARTING) as shown:
        places = context.cluster.places(resources.cpus_per_task, job.request.gpus_per_task)
        tasks = [
            _PassTask(context.shared["parent"], context.shared[split], folder, batch, batches, device_of(job))
            for batches in _divided(count, places)
        ]
        heard = shown.expect([tokens * len(task.batches) / count for task in tasks])
        for _ in context.cluster.run(
            _pass, tasks, cpus=resources.cpus_per_task, gpus=job.request.gpus_per_task, progress=heard
        ):
            pass
    whole.write_text(str(sequences))
    return TextActivations(folder, sequences)


def _divided(count: int, parts: int) -> Sequence[range]:
    """The numbers up to `count` as at most so many ranges of about equal length, none empty."""
    parts = min(count, parts)
    return [range(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def _pass(task: _PassTask, report: Report) -> None:
    ids, model = tensor(task.ids, "cpu"), task.parent.on(task.device).model
    report(0, len(task.batches))
    for number in cache(model, ids, task.folder, task.batch, task.batches):
        report(number + 1 - task.batches.start, len(task.batches))
