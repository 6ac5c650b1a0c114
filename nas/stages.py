"""The stages that fill the library and the store: build every subblock, score every choice. `costs.py` measures them.

Each stage asks the store and the library what is already there, has workers do the rest, and writes their answers as
they come. `_build` and `_score` run on workers: they are given plain values and return plain values.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from blocklib.assemble import parent_part
from blocklib.block import SKIP, Choice, Parallel
from blocklib.distil import Distilled, Progress, Texts, Training, distil
from blocklib.kind import Weights
from blocklib.kinds import parameters
from blocklib.library import Library
from blocklib.packed import PackedParent, pack, unpack
from blocklib.parent import Parent
from db import models
from db.store import Store
from nas.cluster import STARTING, Cluster, Report
from nas.dependency import block_dependency
from nas.job import CHECKED, Job
from nas.progress import bar, rarely
from nas.runs import Matrix
from nas.score import score
from nas.shares import by_count, by_layers

Ids = NDArray[np.int32]


class Shared:
    """The values that every task reads, put where workers can see it when the first task needs it."""

    def __init__(self, job: Job, cluster: Cluster):
        self._job = job
        self._cluster = cluster
        self._handles: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._handles:
            value = pack(self._job.parent) if name == "parent" else getattr(self._job.tokens, name)
            self._handles[name] = self._cluster.share(value)
        return self._handles[name]


# Tokens that tell how blocks depend on each other; more hardly change the matrix.
_DEPENDENCY_TOKENS = 8192


def measure_dependency(job: Job, cluster: Cluster, shared: Shared, console: Console) -> Matrix:
    """How much each block of the parent depends on each before it."""
    gpus = 1 if job.request.gpus_per_task else 0
    with bar(console, "block dependency", "tokens", doing=STARTING) as shown:
        task = (shared["parent"], shared["calibration"], device_of(job))
        ((_, found),) = cluster.run(_depend, [task], gpus=gpus, whole_node=True, progress=shown)
    matrix: Matrix = found
    return matrix


def _depend(packed: PackedParent, calibration: Ids, device: str, report: Report) -> Matrix:
    sequences = max(1, _DEPENDENCY_TOKENS // calibration.shape[1])
    return block_dependency(unpack(packed, device).model, tensor(calibration[:sequences], device), report)


def build_library(job: Job, store: Store, cluster: Cluster, shared: Shared, console: Console) -> int:
    """First weights, least squares and BLD for every subblock not yet in the library. Returns how many were built."""
    keys = {part: job.build_key(part) for part in job.to_build}
    known = store.distillations(list(keys.values()))
    missing = [part for part, key in keys.items() if key not in known or not job.library.has(part, key)]
    if not missing:
        return 0
    settings, resources = job.request.distill, job.request.ray
    # Each task passes over the text for its own layers: together they do what one would do for all.
    most = max(job.training(part).tokens for part in missing)
    with bar(console, "distil blocks", "tokens", most or None, STARTING) as shown:
        groups = _shares(job, cluster, missing, lambda part: part.span)
        tasks = [
            (shared["parent"], shared["calibration"], shared["distillation"], shared["score"], str(job.library.root),
             [(str(part), keys[part], job.training(part)) for part in group], settings.batch, settings.least_squares,
             device_of(job))
            for group in groups
        ]  # fmt: skip
        heard = shown.expect(len(groups) * [most / len(groups)])
        for _, records in cluster.run(
            _build, tasks, cpus=resources.cpus_per_task, gpus=job.request.gpus_per_task, progress=heard
        ):
            store.add_distillations([models.Distillation(**record) for record in records])
    return len(missing)


def _build(
    packed: PackedParent,
    calibration: Ids,
    distillation: Ids,
    heldout: Ids,
    root: str,
    work: Sequence[tuple[str, str, Training]],
    batch: int,
    least_squares: bool,
    device: str,
    report: Report,
) -> list[dict[str, Any]]:
    """Build what of `work` (choice, key, training) the library lacks. Returns a record of each, read back from its
    file: a task started again after it was killed has all of them."""
    library = Library(Path(root))
    keys = {Choice.parse(text): key for text, key, _ in work}
    missing = {Choice.parse(text): t for text, key, t in work if not library.has(Choice.parse(text), key)}
    if missing:
        texts = Texts(
            tensor(calibration, device), tensor(distillation, device), tensor(heldout[:CHECKED], device), batch
        )
        at_work = distil(
            unpack(packed, device), missing, texts, least_squares=least_squares,
            doing=lambda words: report(doing=words), heard=rarely(report, 1.0),
        )  # fmt: skip
        for event in at_work:
            if isinstance(event, Progress):
                report(event.done_tokens, event.total_tokens)
            else:
                metadata = {"format": "pt", "distillation": json.dumps(_record(event, keys[event.choice]))}
                library.save(event.choice, keys[event.choice], event.weights, metadata)
    return [json.loads(library.metadata(part, key)["distillation"]) for part, key in keys.items()]


def _record(distilled: Distilled, key: str) -> dict[str, Any]:
    return {
        "key": key,
        "choice": str(distilled.choice),
        "tokens": distilled.tokens,
        "seconds": distilled.seconds,
        "loss_first_weights": distilled.loss_first_weights,
        "loss_least_squares": distilled.loss_least_squares,
        "loss_trained": distilled.loss_trained,
        "curve": [[float(tokens), loss] for tokens, loss in distilled.curve],
        "usage": None if distilled.usage is None else vars(distilled.usage),
    }


def score_choices(job: Job, store: Store, cluster: Cluster, shared: Shared, console: Console) -> int:
    """Replace-1 scores of every choice not yet scored. Returns how many were scored."""
    keys = {choice: job.score_key(choice) for choice in job.variants}
    known = store.scores(list(keys.values()))
    missing = [choice for choice, key in keys.items() if key not in known]
    if not missing:
        return 0
    shape = job.parent.shape
    head, slots = shape.vocabulary * shape.hidden, 2 * shape.layers
    per_slot = (parameters(job.parent.architecture, shape) - shape.fixed_parameters) / slots
    resources, text = job.request.ray, job.tokens.score.size
    with bar(console, "score options", "tokens", text, STARTING) as shown:
        # The parameters that a token passes from the start of a choice to the logits.
        groups = _shares(job, cluster, missing, lambda choice: head + per_slot * (slots - choice.first_slot))
        tasks = [
            (shared["parent"], shared["score"], str(job.library.root),
             [(str(c), [(str(p), job.build_key(p)) for p in job.library_parts(c)]) for c in group], device_of(job))
            for group in groups
        ]  # fmt: skip
        heard = shown.expect(len(groups) * [text / len(groups)])
        for index, found in cluster.run(
            _score, tasks, cpus=resources.cpus_per_task, gpus=job.request.gpus_per_task, progress=heard
        ):
            store.add_scores([
                models.Score(key=keys[choice], choice=str(choice), **found[str(choice)]) for choice in groups[index]
            ])  # fmt: skip
    return len(missing)


def _score(
    packed: PackedParent,
    ids: Ids,
    root: str,
    work: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    device: str,
    report: Report,
) -> dict[str, dict[str, float]]:
    """The fidelity of each choice of `work`: (choice, its library parts as (choice, key))."""
    parent, library = unpack(packed, device), Library(Path(root))
    weights = {
        Choice.parse(text): choice_weights(parent, library, Choice.parse(text), dict(built)) for text, built in work
    }
    for event in score(parent, weights, tensor(ids, device), rarely(report, 1.0)):
        if not isinstance(event, Progress):
            return {str(choice): vars(fidelity) for choice, fidelity in event.items()}
    raise AssertionError("scoring ended without scores")


def choice_weights(parent: Parent, library: Library, choice: Choice, keys: Mapping[str, str]) -> Weights:
    """The tensors of every part of `choice`: from the library by `keys`, from the parent, or none where skipped.

    Named as `blocklib.stream.variant` wants them.
    """
    weights: dict[str, Any] = {}
    for index, part in enumerate(choice.parts):
        block = f"{index // 2}." if isinstance(choice.what, Parallel) else ""
        held: Weights = {}
        if str(part) in keys:
            held = library.load(part, keys[str(part)])
        elif part.what != SKIP:
            held = parent_part(parent, part.layer, part.role)
        weights |= {f"{block}{name}": values.to(parent.model.device) for name, values in held.items()}
    return weights


def tensor(ids: Ids, device: str) -> torch.Tensor:
    """Token ids on a device. Copied, since what Ray hands out is read-only."""
    return torch.from_numpy(ids.copy()).to(device)


def device_of(job: Job) -> str:
    """Where workers compute. Ray shows a task only the GPUs that are its own."""
    return "cuda" if job.request.gpus_per_task else "cpu"


def gpus_to_time(job: Job) -> int:
    """GPUs a timing asks for: the one it times on."""
    return int(job.scenario.device.startswith("cuda"))


def _shares(
    job: Job, cluster: Cluster, choices: Sequence[Choice], work: Callable[[Choice], float]
) -> list[list[Choice]]:
    asked = job.request.ray
    if asked.layers_per_task:
        return by_count(choices, asked.layers_per_task)
    return by_layers(choices, cluster.places(asked.cpus_per_task, job.request.gpus_per_task), work)
