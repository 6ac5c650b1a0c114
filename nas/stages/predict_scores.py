"""The scores of rounded subblocks that are predicted, not measured (`nas/scoring/rounding_error.py`).

`_errors` runs on workers: it is given one task and returns one result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from blocklib.block import Choice
from blocklib.library import Library
from blocklib.parent import Parent
from db import models
from nas.cluster.tasks import STARTING, Report
from nas.scoring.fidelity import Fidelity
from nas.scoring.rounding_error import OWN, predicted, rounding_errors
from nas.stages.context import Context
from nas.stages.devices import device_of, tensor
from nas.stages.library import choice_weights, score_choices, shares
from nas.stages.prepare import Job
from nas.terminal.progress import bar
from nas.text.token_files import Ids

_TOKENS = 256
"""Tokens to compare errors on: an error's mean square needs few."""


@dataclass(frozen=True)
class _ErrorTask:
    """`keys` are those in the library, whose folder is `root`: of `work`, and of what it was rounded from where that is
    not the parent's own."""

    parent: Parent
    ids: Ids
    root: Path
    work: Sequence[Choice]
    keys: Mapping[Choice, str]
    device: str


def predict_scores(context: Context) -> int:
    """Scores of the choices whose scores are predicted and not known yet. Returns how many these were.

    A parent that was stored in a coarse precision loses next to nothing in it, and that says nothing of the others: at
    such a slot the coarsest one that loses more is measured, and where there is none, all are.
    """
    job, store = context.job, context.store
    keys = {choice: job.score_key(choice) for choice in job.to_predict}
    known = store.scores(list(keys.values()))
    missing = [choice for choice, key in keys.items() if key not in known]
    if not missing:
        return 0
    rounded = {choice.first_slot: job.own_rounded[choice.first_slot] for choice in missing}
    errors = _all_errors(context, list(dict.fromkeys([*missing, *chain.from_iterable(rounded.values())])))
    anchors = {slot: anchor_of(choices, errors) for slot, choices in rounded.items()}
    to_measure = [choice for choice in missing if anchors[choice.first_slot] is None]
    to_measure += [anchor for anchor in anchors.values() if anchor is not None]
    score_choices(context, to_measure)
    measured = store.scores([job.measured_score_key(choice) for choice in [*job.to_score, *to_measure]])

    def score_of(choice: Choice) -> Fidelity:
        return _fidelity(measured[job.measured_score_key(choice)])

    rows = []
    for choice in missing:
        anchor = anchors[choice.first_slot]
        if anchor is None or choice == anchor:
            score = score_of(choice)
        else:
            base = OWN if job.parent.own(choice.unrounded) else score_of(choice.unrounded)
            score = predicted(base, score_of(anchor), errors[choice] / errors[anchor])
        rows.append(models.ScoreRow(key=keys[choice], choice=str(choice), **vars(score)))
    store.add_scores(rows)
    return len(missing)


def anchor_of(coarsest_first: Sequence[Choice], errors: Mapping[Choice, float]) -> Choice | None:
    """The first whose error is at least a tenth of the largest: a smaller one says too little of the others. None where
    all are 0."""
    largest = max(errors[choice] for choice in coarsest_first)
    return next(choice for choice in coarsest_first if errors[choice] >= largest / 10) if largest > 0 else None


def to_compare(ids_BT: Ids) -> Ids:
    """The beginning of the score text on which errors are compared."""
    return ids_BT[: max(1, _TOKENS // ids_BT.shape[1]), :_TOKENS]


def _all_errors(context: Context, wanted: Sequence[Choice]) -> dict[Choice, float]:
    job, shared, resources = context.job, context.shared, context.job.request.ray
    errors: dict[Choice, float] = {}
    with bar(context.console, "predict scores", "options", len(wanted), STARTING) as shown:
        tasks = [
            _ErrorTask(
                shared["parent"], shared["score"], job.library.root, group, _keys(job, group), device_of(job),
            )
            for group in shares(context, "score", wanted, lambda choice: 1.0)
        ]  # fmt: skip
        heard = shown.expect([len(task.work) for task in tasks])
        for _, found in context.cluster.run(
            _errors, tasks, cpus=resources.cpus_per_task, gpus=job.request.gpus_per_task, progress=heard
        ):
            errors |= found
    return errors


def _fidelity(row: models.ScoreRow) -> Fidelity:
    return Fidelity(row.kl, row.lm_loss, row.top1_agreement, row.hidden_cosine)


def _errors(task: _ErrorTask, report: Report) -> dict[Choice, float]:
    parent, library = task.parent.on(task.device), Library(task.root)
    ids_BT = tensor(to_compare(task.ids), task.device)
    weights = partial(choice_weights, parent, library, keys=task.keys)
    found: dict[Choice, float] = {}
    for choice, error in rounding_errors(parent, task.work, weights, ids_BT):
        found[choice] = error
        report(len(found), len(task.work))
    return found


def _keys(job: Job, rounded: Sequence[Choice]) -> dict[Choice, str]:
    before = {choice.unrounded: key for choice in rounded if (key := job.distillation_key(choice)) is not None}
    return before | {choice: job.build_key(choice) for choice in rounded}
