"""Costs of parts, corrected by whole random architectures where the plain sums are off.

A part is timed in a stack of itself alone; among other parts it may take a little more or less. A job with
`measure.whole_models` has so many random architectures timed whole, in turns with the parent. Half of them correct the
times of the parts (`cost_models/timing/calibration.py`), the other half decides: the corrected times are used if their
sums are closer to it than the plain ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blocklib.block import Architecture
from blocklib.model import PuzzleNasConfig
from cost_models.engines.engines import engine_of
from cost_models.geometry import Geometry
from cost_models.scenario import Scenario
from cost_models.timing.calibration import Parts, correction
from cost_models.timing.device_lock import alone_on
from cost_models.timing.pair import Comparison, Rounds
from db import models
from db.rows import values
from nas.cluster.tasks import STARTING, Report
from nas.stages.context import Context
from nas.stages.devices import gpus_to_time
from nas.stages.prepare import Job
from nas.stages.time_architectures import random_architectures, timing_of, whole_time_row
from nas.terminal.progress import bar

_SEED = -1
"""The seed draws other architectures than `nas costs check` does by default."""
_IN_A_TASK = 4
"""The number of architectures that one task times; the times of a finished task are kept."""
_PHASES = ("prefill_s", "decode_s")
_FEWEST = 2
"""The smallest number of architectures to correct costs by, and to decide by."""


def correct_costs(context: Context, remeasure: bool = False) -> int:
    """Write the costs that the search is solved on, where its job asks for whole models. Returns how many were timed.

    Times that were taken before are used again, unless `remeasure`. Raises EngineStoppedError where the engine ends;
    the times until then are kept.
    """
    job, store = context.job, context.store
    asked = job.request.measure.whole_models
    if asked is None or not job.is_timed_here:
        return 0
    wanted = random_architectures([*job.choices, *job.caches], job.parent.architecture, asked, _SEED)
    if remeasure:
        store.remove_whole_times(job.id, wanted)
    corrects = {text: index % 2 == 0 for index, text in enumerate(wanted)}
    known = {row.architecture for row in store.whole_times(job.id) if row.take == 0}
    missing = [text for text in wanted if text not in known]
    busy = 0
    for text, timed in _timed(context, missing):
        if timed.contention > job.request.measure.contention_allowed:
            busy += 1
        else:
            store.add_whole_time(whole_time_row(job.id, text, timed, corrects=corrects[text]))
    rows = [row for row in store.whole_times(job.id) if row.take == 0 and row.architecture in wanted]
    plain = store.costs([job.cost_key(geometry) for geometry in job.to_measure])
    parts = {geometry: plain[job.cost_key(geometry)] for geometry in job.to_measure}
    used, why = _corrected(job, parts, rows)
    _write(context, parts, used)
    context.console.print(why, soft_wrap=True, highlight=False)
    if busy:
        context.console.print(
            f"{busy} of {len(missing)} whole models were timed while the machine was busy, and are left out; the same "
            "command again times them again", style="yellow", soft_wrap=True, highlight=False,
        )  # fmt: skip
    return len(missing)


def _corrected(
    job: Job, rows: Mapping[Geometry, models.CostRow], timed: Sequence[models.WholeTimeRow]
) -> tuple[Parts, str]:
    """The seconds to use, and why, in words."""
    plain = {phase: {str(part): getattr(row, phase) for part, row in rows.items()} for phase in _PHASES}
    fitted, kept_out = ([timing_of(row) for row in timed if row.corrects == corrects] for corrects in (True, False))
    if min(len(fitted), len(kept_out)) < _FEWEST:
        return plain, f"{len(timed)} whole models are too few to correct costs by; the costs stay as they are"
    found = correction(plain, job.parent.architecture, job.scenario, fitted, kept_out)
    told = (
        f"{len(kept_out)} whole models: sums of costs are {found.plain.mape:.1%} off (bias {found.plain.bias:+.1%}); "
        f"of costs corrected by {len(fitted)} others, {found.corrected.mape:.1%} (bias {found.corrected.bias:+.1%})"
    )
    if found.helps:
        return found.parts, f"{told}; the corrected costs are used"
    return plain, f"{told}; the costs stay as they are"


def _write(context: Context, rows: Mapping[Geometry, models.CostRow], parts: Parts) -> None:
    """Write the costs under the search's own keys, where they are not there already."""
    job, store = context.job, context.store
    written = {job.used_cost_key(part): _with_times(job, part, row, parts) for part, row in rows.items()}
    known = store.costs(list(written))
    store.add_costs([row for key, row in written.items() if key not in known])
    store.replace_costs([row for key, row in written.items() if key in known and values(row) != values(known[key])])


def _with_times(job: Job, part: Geometry, row: models.CostRow, parts: Parts) -> models.CostRow:
    times = {phase: seconds[str(part)] for phase, seconds in parts.items()}
    return models.CostRow(**values(row) | times | {"key": job.used_cost_key(part)})


@dataclass(frozen=True)
class _WholesTask:
    """`config` is the parent's."""

    config: Mapping[str, Any]
    parent: str
    architectures: Sequence[str]
    scenario: Scenario
    rounds: Rounds


def _timed(context: Context, missing: Sequence[str]) -> Iterator[tuple[str, Comparison]]:
    """The timings of these architectures, as their tasks finish."""
    if not missing:
        return
    job, asked = context.job, context.job.request.measure
    rounds = Rounds(most=100, tolerance=asked.tolerance / 2, seconds=asked.time_limit)
    config, parent = job.parent.config.to_dict(), str(job.parent.architecture)
    tasks = [
        _WholesTask(config, parent, missing[start : start + _IN_A_TASK], job.scenario, rounds)
        for start in range(0, len(missing), _IN_A_TASK)
    ]
    how: dict[str, Any] = {"gpus": gpus_to_time(job), "whole_node": True}
    with bar(context.console, "time whole models", "models", len(missing), doing=STARTING) as shown:
        for _, found in context.cluster.run(_time, tasks, **how, progress=shown):
            yield from found


def _time(task: _WholesTask, report: Report) -> list[tuple[str, Comparison]]:
    engine, scenario = engine_of(task.scenario.engine), task.scenario
    config = PuzzleNasConfig.from_dict(dict(task.config))
    found: list[tuple[str, Comparison]] = []
    with (
        alone_on(scenario.device, lambda words: report(doing=words)),
        engine.random(config, Architecture.parse(task.parent), scenario) as control,
    ):
        for text in task.architectures:
            with engine.random(config, Architecture.parse(text), scenario) as other:
                found.append((text, engine.time(control, other, scenario, task.rounds)))
            report(len(found), len(task.architectures))
    return found
