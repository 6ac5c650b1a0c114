"""The scores of rounded subblocks that are predicted, not measured (`nas/scoring/rounding_error.py`).

`_errors` runs on workers: it is given one task and returns one result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from blocklib.block import Choice
from blocklib.library import Library
from blocklib.packed import PackedParent, unpack
from db import models
from nas.cluster.tasks import STARTING, Report
from nas.scoring.fidelity import Fidelity
from nas.scoring.rounding_error import OWN, predicted, rounding_errors
from nas.stages.context import Context
from nas.stages.library import Ids, choice_weights, device_of, shares, tensor
from nas.stages.prepare import Job
from nas.terminal.progress import bar

_TOKENS = 1024
"""Tokens to compare errors on: an error's mean square needs few."""


@dataclass(frozen=True)
class _ErrorTask:
    """`keys` are those in the library, whose folder is `root`: of `work`, and of what it was rounded from where that is
    not the parent's own."""

    parent: PackedParent
    ids: Ids
    root: Path
    work: Sequence[Choice]
    keys: Mapping[Choice, str]
    device: str


def predict_scores(context: Context) -> int:
    """Scores of the choices whose scores are predicted and not known yet. Returns how many were predicted."""
    job, store, shared = context.job, context.store, context.shared
    keys = {choice: job.score_key(choice) for choice in job.to_predict}
    known = store.scores(list(keys.values()))
    missing = [choice for choice, key in keys.items() if key not in known]
    if not missing:
        return 0
    anchors = {choice: job.anchor(choice) for choice in missing}
    wanted = list(dict.fromkeys([*missing, *anchors.values()]))
    resources = job.request.ray
    errors: dict[Choice, float] = {}
    with bar(context.console, "predict scores", "options", len(wanted), STARTING) as shown:
        tasks = [
            _ErrorTask(
                shared["parent"], shared["score"], job.library.root,
                group, _keys(job, group), device_of(job),
            )
            for group in shares(context, wanted, lambda choice: 1.0)
        ]  # fmt: skip
        heard = shown.expect([len(task.work) for task in tasks])
        for _, found in context.cluster.run(
            _errors, tasks, cpus=resources.cpus_per_task, gpus=job.request.gpus_per_task, progress=heard
        ):
            errors |= found
    measured = store.scores([job.score_key(choice) for choice in job.to_score])
    rows = []
    for choice in missing:
        shape = choice.unrounded
        base = OWN if job.parent.own(shape) else _fidelity(measured[job.score_key(shape)])
        anchor = anchors[choice]
        ratio = errors[choice] / max(errors[anchor], 1e-30)
        score = predicted(base, _fidelity(measured[job.score_key(anchor)]), ratio)
        rows.append(models.ScoreRow(key=keys[choice], choice=str(choice), **vars(score)))
    store.add_scores(rows)
    return len(missing)


def _fidelity(row: models.ScoreRow) -> Fidelity:
    return Fidelity(row.kl, row.lm_loss, row.top1_agreement, row.hidden_cosine)


def _errors(task: _ErrorTask, report: Report) -> dict[Choice, float]:
    parent, library = unpack(task.parent, task.device), Library(task.root)
    ids_BT = tensor(task.ids[: max(1, _TOKENS // task.ids.shape[1])], task.device)
    weights = partial(choice_weights, parent, library, keys=task.keys)
    found: dict[Choice, float] = {}
    for choice, error in rounding_errors(parent, task.work, weights, ids_BT):
        found[choice] = error
        report(len(found), len(task.work))
    return found


def _keys(job: Job, rounded: Sequence[Choice]) -> dict[Choice, str]:
    before = {choice.unrounded: key for choice in rounded if (key := job.distillation_key(choice)) is not None}
    return before | {choice: job.build_key(choice) for choice in rounded}
