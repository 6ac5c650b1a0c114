"""The stages that fill the store: build the library, score every choice, measure every geometry.

Each stage asks the store and the library what is already there, has workers do the rest, and writes their answers as
they come. `_build`, `_score` and `_measure` run on workers: they are given plain values and return plain values.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from blocklib.assemble import parent_part
from blocklib.block import SKIP, Choice, Parallel
from blocklib.distil import Distilled, Progress, Training, distil
from blocklib.kind import Weights
from blocklib.kinds import parameters
from blocklib.library import Library
from blocklib.model import PuzzleNasConfig
from blocklib.packed import PackedParent, pack, unpack
from blocklib.parent import Parent
from cost_models.analytic import choice_cost, fixed_cost
from cost_models.cost import ZERO, Cost
from cost_models.flash import MemoryHierarchy
from cost_models.geometry import FIXED, Geometry, geometries
from cost_models.measured import MeasuredGeometry, measure
from cost_models.measured import Progress as Stacks
from cost_models.scenario import Scenario
from cost_models.timing import Rounds
from db import models
from db.store import Store
from nas.clock import clock
from nas.cluster import STARTING, Cluster, Report
from nas.dependency import block_dependency
from nas.digest import digest
from nas.flash import simulate
from nas.job import CHECKED, Job
from nas.progress import bar, rarely
from nas.runs import Matrix
from nas.score import score
from nas.shares import by_count, by_layers

Ids = NDArray[np.int32]
_SKIPPED = "skip"
_BUSY = 0.1
"""Of the cores needed: what others may take before it is told of."""


class Shared:
    """What every task reads, put where workers can see it when the first task needs it."""

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
        texts = [tensor(ids, device) for ids in (calibration, distillation, heldout[:CHECKED])]
        at_work = distil(
            unpack(packed, device), missing, *texts, batch=batch, least_squares=least_squares,
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
        # What a token passes between where a choice starts and the logits, in parameters.
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


def measure_costs(job: Job, store: Store, cluster: Cluster, shared: Shared, console: Console) -> int:
    """Seconds of every geometry not yet measured under this scenario on this hardware, or simulated where the scenario
    is of a machine that streams from Flash. Returns how many were."""
    keys = {geometry: job.cost_key(geometry) for geometry in job.to_measure}
    known = store.costs(list(keys.values()))
    missing = [geometry for geometry, key in keys.items() if key not in known]
    if not missing:
        return 0
    wanted = [geometry for geometry in missing if geometry != FIXED]
    work: Callable[..., list[MeasuredGeometry]]
    task: tuple[Any, ...]
    if job.hierarchy is not None:
        work, task = _simulate, (shared["parent"], shared["calibration"], wanted, job.scenario, job.hierarchy)
    else:
        rounds = Rounds(tolerance=job.request.measure.tolerance, seconds=job.request.measure.time_limit)
        work, task = _measure, (job.parent.model.config.to_dict(), wanted, job.scenario, rounds)
    with bar(console, "measure costs", "stacks", doing=STARTING) as shown:
        ((_, found),) = cluster.run(work, [task], gpus=gpus_to_time(job), whole_node=True, progress=shown)
    measured = {timed.geometry: timed for timed in found}
    tell_if_busy([timed.taken for timed in found], "options were", console)
    prefill = decode = 1.0
    if job.hierarchy is None:
        # Read again: another search may have measured some in the meantime.
        known = store.costs(list(keys.values()))
        own = [FIXED, *(part for choice in job.parent.architecture.choices() for part in geometries(choice))]
        prefill, decode = clock({part: known.get(key) for part, key in keys.items()}, measured, own)
    rows = []
    for geometry in missing:
        timed = measured[geometry]
        timed = replace(timed, prefill_s=prefill * timed.prefill_s, decode_s=decode * timed.decode_s)
        rows.append(_cost_row(job, timed, keys[geometry]))
    store.add_costs(rows)
    return len(missing)


def tell_if_busy(taken: Sequence[float], what: str, console: Console) -> None:
    """`taken` as in `Comparison`, of each of what was timed."""
    if max(taken, default=0.0) > _BUSY:
        console.print(
            f"the machine was busy while {what} timed: other programs kept up to {max(taken):.0%} of the cores needed, "
            "and times may be far off; to take them again when it is not, change measure.tolerance a little",
            style="yellow", soft_wrap=True,
        )  # fmt: skip


def _measure(
    config: Mapping[str, Any], wanted: Sequence[Geometry], scenario: Scenario, rounds: Rounds, report: Report
) -> list[MeasuredGeometry]:
    found = []
    report(doing="the parent and its parts")
    for event in measure(PuzzleNasConfig.from_dict(dict(config)), wanted, scenario, rounds):
        if isinstance(event, MeasuredGeometry):
            found.append(event)
        elif isinstance(event, Stacks):
            report(event.done, event.total)
    return found


def _simulate(
    packed: PackedParent,
    calibration: Ids,
    wanted: Sequence[Geometry],
    scenario: Scenario,
    hierarchy: MemoryHierarchy,
    report: Report,
) -> list[MeasuredGeometry]:
    found = []
    for done, simulated in enumerate(
        simulate(unpack(packed), wanted, scenario, hierarchy, tensor(calibration, "cpu")), 1
    ):
        found.append(simulated)
        report(done, len(wanted) + 1)
    return found


def _cost_row(job: Job, timed: MeasuredGeometry, key: str) -> models.Cost:
    geometry, shape = timed.geometry, job.parent.shape
    if geometry.role == "fixed":
        held = fixed_cost(shape, job.scenario)
    else:
        held = choice_cost(Choice(0, geometry.role, geometry.subblock), shape, job.scenario)
    return _row(key, str(geometry), held + Cost(timed.prefill_s, timed.decode_s), timed.spread)


def _row(key: str, name: str, cost: Cost, spread: float) -> models.Cost:
    return models.Cost(key=key, name=name, spread=spread, **vars(cost))


def write_options(job: Job, store: Store) -> None:
    """The search's options with what is known of each, so that it can be solved from the database alone."""
    measured = store.costs([job.cost_key(geometry) for geometry in job.to_measure])
    by_geometry = {geometry: _cost_of(measured[job.cost_key(geometry)]) for geometry in job.to_measure}
    summed: dict[str, models.Cost] = {}
    found = []
    for choice in job.choices:
        keys = sorted(job.cost_key(geometry) for geometry in geometries(choice))
        cost_key = keys[0] if len(keys) == 1 else digest(_SKIPPED, *keys)
        if len(keys) != 1:
            whole = sum((by_geometry[geometry] for geometry in geometries(choice)), ZERO)
            summed[cost_key] = _row(cost_key, " + ".join(map(str, geometries(choice))) or _SKIPPED, whole, 0.0)
        build = job.library_parts(choice)
        found.append(
            models.Option(
                search_id=job.id,
                choice=str(choice),
                first_slot=choice.first_slot,
                span=choice.span,
                name=str(choice.what),
                score_key=None if job.parent.own(choice) else job.score_key(choice),
                cost_key=cost_key,
                distillation_key=job.build_key(build[0]) if len(build) == 1 else None,
            )
        )
    store.add_costs(list(summed.values()))
    store.set_options(job.id, found)


def parent_costs(job: Job, store: Store) -> dict[str, Any]:
    """The fixed part's cost and the parent's whole, which is its parts' sum, as the search row keeps them."""
    measured = store.costs([job.cost_key(geometry) for geometry in job.to_measure])
    fixed = _cost_of(measured[job.cost_key(FIXED)])
    own = [geometry for choice in job.parent.architecture.choices() for geometry in geometries(choice)]
    whole = sum((_cost_of(measured[job.cost_key(geometry)]) for geometry in own), fixed)
    return {"fixed": vars(fixed), "whole": vars(whole)}


def _cost_of(row: models.Cost) -> Cost:
    return Cost(**{each.name: getattr(row, each.name) for each in fields(Cost)})


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
