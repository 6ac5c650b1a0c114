"""The scores of the types of keys and values that a search chooses from, in one task. `_score` runs on a worker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blocklib.parent import Parent
from db import models
from nas.cluster.tasks import STARTING, Report
from nas.scoring.fidelity import Fidelity
from nas.scoring.kv_cache import score_kv_caches
from nas.stages.context import Context
from nas.stages.devices import device_of, tensor
from nas.terminal.progress import bar
from nas.text.token_files import Ids


@dataclass(frozen=True)
class _KeptTask:
    """`names` are llama.cpp's types."""

    parent: Parent
    ids: Ids
    names: Sequence[str]
    batch: int
    device: str


def score_caches(context: Context) -> int:
    """Measure how far each type that is not scored yet moves the parent. Returns how many were scored."""
    job, store, shared = context.job, context.store, context.shared
    keys = {cache: job.score_key(cache) for cache in job.caches}
    known = store.scores(list(keys.values()))
    missing = [cache for cache, key in keys.items() if key not in known]
    if not missing:
        return 0
    names, resources = [cache.precision for cache in missing], job.request.ray
    with bar(context.console, "score keys and values", "tokens", job.tokens.score.size, STARTING) as shown:
        task = _KeptTask(shared["parent"], shared["score"], names, job.request.distill.batch, device_of(job))
        ((_, found),) = context.cluster.run(
            _score, [task], cpus=resources.cpus_per_task, gpus=job.request.gpus_per_task, progress=shown
        )
    store.add_scores([
        models.ScoreRow(key=keys[cache], choice=str(cache), **vars(found[cache.precision])) for cache in missing
    ])  # fmt: skip
    return len(missing)


def _score(task: _KeptTask, report: Report) -> Mapping[str, Fidelity]:
    parent, ids_BT = task.parent.on(task.device), tensor(task.ids, task.device)
    return score_kv_caches(parent, task.names, ids_BT, task.batch, report)
