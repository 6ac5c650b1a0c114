"""The stage that rounds: every part of a search's options in each of its precisions, into the library.

It gives work on parts that the library lacks to workers. `_round` runs on one: it is given one task and returns how
many parts it rounded. A rounded part has no row: its file is whole or absent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blocklib.assemble import parent_part
from blocklib.block import Choice
from blocklib.kind import Weights
from blocklib.library import Library
from blocklib.parent import Parent
from blocklib.precisions.round_library import round_parts
from blocklib.precisions.rounding import How
from blocklib.tables import table_names
from nas.cluster.tasks import STARTING, Report
from nas.stages.context import Context
from nas.stages.devices import device_of, tensor
from nas.stages.library import shares
from nas.terminal.progress import bar
from nas.text.token_files import Ids

_HOW: How = "feedback"
"""Refitting takes as long again and hardly changes a score; the child that is chosen gets it."""


@dataclass(frozen=True)
class _Rounding:
    """One part to round: its key in the library, and that of its weights before; None: they are the parent's own."""

    part: Choice
    key: str
    unrounded: str | None


@dataclass(frozen=True)
class _RoundTask:
    """`root` is the library's folder; `batch` sequences of the calibration text run at a time."""

    parent: Parent
    calibration: Ids
    root: Path
    work: Sequence[_Rounding]
    batch: int
    device: str


def round_library(context: Context) -> int:
    """Round every part that is not in the library yet. Returns how many were rounded."""
    job, shared = context.job, context.shared
    missing = [part for part in job.to_round if not job.library.has(part, job.build_key(part))]
    if not missing:
        return 0
    resources = job.request.ray
    with bar(context.console, "round weights", "parts", len(missing), STARTING) as shown:
        groups = shares(context, "distil", missing, _work)
        tasks = [
            _RoundTask(
                shared["parent"], shared["calibration"], job.library.root,
                [_Rounding(part, job.build_key(part), job.distillation_key(part)) for part in group],
                job.request.distill.batch, device_of(job),
            )
            for group in groups
        ]  # fmt: skip
        heard = shown.expect([len(group) for group in groups])
        for _ in context.cluster.run(
            _round, tasks, cpus=resources.cpus_per_task, gpus=job.request.gpus_per_task, progress=heard
        ):
            pass
    return len(missing)


def _work(part: Choice) -> float:
    """Attention is less than an FFN, and tables are more."""
    return {"attention": 1.0, "ffn": 3.0}.get(part.role, 20.0)


def _round(task: _RoundTask, report: Report) -> int:
    library, parent = Library(task.root), task.parent.on(task.device)
    keys = {one.part: one.key for one in task.work}
    before: Mapping[Choice, str | None] = {one.part.unrounded: one.unrounded for one in task.work}

    def weights_of(part: Choice) -> Weights:
        key = before[part]
        if part.is_table:
            return {name: parent.tensor(name) for name in table_names(part.role, parent.shape.tied)}
        return parent_part(parent, part.layer, part.role) if key is None else library.load(part, key)

    missing = [part for part in keys if not library.has(part, keys[part])]
    ids_BT = tensor(task.calibration, task.device)
    rounded = round_parts(parent, missing, weights_of, ids_BT, task.batch, _HOW)
    for done, (part, weights) in enumerate(rounded, 1):
        library.save(part, keys[part], weights, {"format": "pt"})
        report(done, len(missing))
    return len(missing)
