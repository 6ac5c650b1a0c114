"""The cost of an option: seconds of every geometry, measured or simulated, and the rows that keep them.

A time comes with its standard error and the CPU contention during its measurement. A time that is known to be too noisy
is never used for a budget that limits times: it is measured again, and if it stays noisy the search stops. `_measure`
and `_simulate` run on workers: each is given one task and returns one result.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from blocklib.block import Choice
from blocklib.model import PuzzleNasConfig
from blocklib.parent import Parent
from cost_models.analytic import choice_cost, fixed_cost, mean_cost
from cost_models.cost import ZERO, Cost
from cost_models.energy.meter import meter_of
from cost_models.engines.engines import engine_of
from cost_models.errors import EngineStoppedError
from cost_models.flash.flash import MemoryHierarchy
from cost_models.geometry import FIXED, Geometry, all_geometries, geometries
from cost_models.scenario import Scenario
from cost_models.timing.device_lock import alone_on
from cost_models.timing.launches import launch_warning
from cost_models.timing.measure import TimedStack, measure
from cost_models.timing.measured_geometry import MeasuredGeometry
from cost_models.timing.pair import Rounds
from cost_models.timing.quality import ANY, Quality
from cost_models.timing.suspicions import suspicions
from db import models
from db.store import Store
from nas.cluster.tasks import STARTING, Report
from nas.errors import NoisyTimesError
from nas.job.stored import ParentCosts
from nas.job.units import needs_meter
from nas.solve.solve import cost_of
from nas.stages.clock import clock, on_clock
from nas.stages.context import Context
from nas.stages.devices import gpus_to_time, tensor
from nas.stages.flash_costs import simulate
from nas.stages.prepare import Job
from nas.terminal.progress import bar
from nas.text.token_files import Ids

_BUSY = 0.1
"""The smallest CPU contention that causes a message."""
_SHOWN = 3
"""The number of bad times that a message names."""
_GOOD_ARE_KEPT = "good times are kept, and only the noisy ones are measured again"
_NONE_IS_KEPT = "no time of this run is kept, as the parent's own parts must say how fast the machine is now"


def measure_costs(context: Context, remeasure: bool = False) -> int:
    """Measure every geometry that has no good time under this scenario on this hardware. Returns how many.

    A scenario with Flash is simulated, and a job may name a table of costs. `remeasure`: measure all. Raises
    NoisyTimesError if some times stay bad and the budget limits times, EngineStoppedError where the engine ends; the
    good times are kept, unless the parent's own parts are too noisy to put them beside earlier ones.
    """
    job, store = context.job, context.store
    keys = {geometry: job.cost_key(geometry) for geometry in job.to_measure}
    known = store.costs(list(keys.values()))
    missing = _missing(job, {part: known[key] for part, key in keys.items() if key in known}, remeasure)
    if missing:
        found, stopped = _measured_or_simulated(context, missing)
        if stopped and not set(_own(job)) <= found.keys():
            raise EngineStoppedError(stopped)
        missing = [part for part in missing if part in found]
        # Read again: another search may have measured some in the meantime.
        kept = {part: row for part, row in _rows(job, store).items() if part not in missing or keys[part] not in known}
        factors = clock(kept, found, _own(job)) if job.is_timed_here else {}
        if job.is_timed_here and any(part in kept for part in _own(job)):
            _refuse(job, {part: why for part in _own(job) if (why := _fault(job, found[part]))}, _NONE_IS_KEPT)
        rows = {part: _cost_row(job, on_clock(found[part], factors), keys[part]) for part in missing}
        store.add_costs([row for row in rows.values() if row.key not in known])
        store.replace_costs([row for row in rows.values() if row.key in known])
        if stopped:
            raise EngineStoppedError(f"{stopped}; the {len(missing)} times taken before that are kept")
    times = {part: _timed(part, row) for part, row in _rows(job, store).items()}
    _tell(job, times, context.console)
    _refuse(job, {part: why for part, timed in times.items() if (why := _fault(job, timed))})
    return len(missing)


def quality_of(job: Job) -> Quality:
    """The quality that times need. Any quality is enough if the budget limits no time, or nothing is timed."""
    if not job.is_timed_here or not any(limit.row.is_measured for limit in job.request.budget):
        return ANY
    asked = job.request.measure
    return Quality(asked.spread_allowed, asked.contention_allowed, asked.patience)


def _is_metered(job: Job) -> bool:
    return needs_meter(job.request.budget)


def _missing(job: Job, known: Mapping[Geometry, models.CostRow], remeasure: bool) -> list[Geometry]:
    """The parts to measure. If the parent's own are among them, these are all parts, because the others are measured
    relative to those."""
    bad = {part for part, row in known.items() if _fault(job, _timed(part, row))}
    missing = [part for part in job.to_measure if part not in known or part in bad]
    is_all = remeasure or (job.is_timed_here and not set(_own(job)).isdisjoint(missing))
    return list(job.to_measure) if is_all else missing


def _own(job: Job) -> list[Geometry]:
    """The parent's parts, each as often as the parent has it."""
    return list(all_geometries(job.parent.architecture))


def _rows(job: Job, store: Store) -> dict[Geometry, models.CostRow]:
    keys = {part: job.cost_key(part) for part in job.to_measure}
    known = store.costs(list(keys.values()))
    return {part: known[key] for part, key in keys.items() if key in known}


@dataclass(frozen=True)
class _MeasureTask:
    """`config` is the parent's; `is_metered`: joules are read too."""

    config: Mapping[str, Any]
    wanted: Sequence[Geometry]
    scenario: Scenario
    rounds: Rounds
    quality: Quality
    is_metered: bool


@dataclass(frozen=True)
class _SimulateTask:
    parent: Parent
    calibration: Ids
    wanted: Sequence[Geometry]
    scenario: Scenario
    hierarchy: MemoryHierarchy


def _measured_or_simulated(
    context: Context, missing: Sequence[Geometry]
) -> tuple[dict[Geometry, MeasuredGeometry], str]:
    """The missing geometries and the parent's own parts, measured or simulated. If the engine stopped before the end,
    these are the ones until then, and the text says why."""
    job, shared = context.job, context.shared
    if job.table is not None:
        assert job.request.measure.table is not None
        return job.table.measured(missing, job.request.measure.table), ""
    wanted = [geometry for geometry in missing if geometry != FIXED]
    how: dict[str, Any] = {"gpus": gpus_to_time(job), "whole_node": True}
    with bar(context.console, "measure costs", "stacks", doing=STARTING) as shown:
        if job.hierarchy is not None:
            simulation = _SimulateTask(shared["parent"], shared["calibration"], wanted, job.scenario, job.hierarchy)
            ((_, (found, stopped)),) = context.cluster.run(_simulate, [simulation], **how, progress=shown)
        else:
            rounds = Rounds(tolerance=job.request.measure.tolerance, seconds=job.request.measure.time_limit)
            config = job.parent.config.to_dict()
            timing = _MeasureTask(config, wanted, job.scenario, rounds, quality_of(job), _is_metered(job))
            ((_, (found, stopped)),) = context.cluster.run(_measure, [timing], **how, progress=shown)
    return {timed.geometry: timed for timed in found}, stopped


def _fault(job: Job, timed: MeasuredGeometry) -> str:
    """The faults of a time, in words. A time of 0 with an error was already measured twice, so it is none."""
    quality = quality_of(job)
    fault = quality.fault(timed.spread, timed.contention)
    seconds = [timed.prefill_s] + ([timed.decode_s] if job.scenario.generated_tokens > 1 else [])
    if not fault and _is_metered(job) and timed.prefill_j is None:
        return "no energy in joules, because no meter was read"
    if not fault and quality != ANY and timed.prefill_error_s is None and min(seconds) <= 0:
        return "a time of 0, although it holds weights"
    return fault


def _tell(job: Job, times: Mapping[Geometry, MeasuredGeometry], console: Console) -> None:
    """Print the warnings about times. They are printed in every run, because they hold in the second run as well."""
    asked, lines = job.request.measure, []
    busy = [timed.contention for timed in times.values() if (timed.contention or 0.0) > _BUSY]
    if busy:
        lines.append(
            f"the machine was busy while {len(busy)} of {len(times)} times were taken: other programs kept up to "
            f"{max(map(_known, busy)):.0%} of the cores needed (CPU contention), and times may be far off"
        )
    rough = [timed.spread for timed in times.values() if timed.spread > asked.spread_allowed]
    if rough:
        lines.append(
            f"{len(rough)} of {len(times)} times are uncertain: a model made of the worst alone would have a standard "
            f"error of {max(rough):.0%}"
        )
    odd = suspicions(times, job.scenario.generated_tokens > 1) if job.is_timed_here else {}
    lines += [f"{part} {why}" for part, why in list(odd.items())[:_SHOWN]]
    lines += [f"and so {len(odd) - _SHOWN} more"] if len(odd) > _SHOWN else []
    bound = launch_warning(times, job.parent.shape, job.scenario) if job.is_timed_here else ""
    lines += [bound] if bound else []
    for line in lines:
        console.print(line, style="yellow", soft_wrap=True, highlight=False)
    if lines:
        console.print("to measure all times again, run: nas search JOB --remeasure", soft_wrap=True, highlight=False)


def _known(value: float | None) -> float:
    assert value is not None
    return value


def _refuse(job: Job, faults: Mapping[Geometry, str], kept: str = _GOOD_ARE_KEPT) -> None:
    """Raises NoisyTimesError where there are any. `kept` says which times are."""
    if not faults:
        return
    named = [f"{part} has {why}" for part, why in list(faults.items())[:_SHOWN]]
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    asked = job.request.measure
    raise NoisyTimesError(
        f"{len(faults)} of {len(job.to_measure)} times are too noisy for this budget, measured again for up to "
        f"{asked.patience:g} s: {'; '.join(named)}{more}. When the machine is idle, run the same command again: "
        f"{kept}; or raise measure.worst_spread or measure.worst_contention, to use them as they are, or "
        "measure.patience, to try longer"
    )


_Measured = tuple[tuple[MeasuredGeometry, ...], str]
"""Times, and why there are no more of them; empty if all are there."""


def _measure(task: _MeasureTask, report: Report) -> _Measured:
    found: list[MeasuredGeometry] = []
    scenario = task.scenario
    engine = engine_of(scenario.engine, meter_of(scenario.device) if task.is_metered else None)
    with alone_on(scenario.device, lambda words: report(doing=words)):
        report(doing="the parent and its parts")
        config = PuzzleNasConfig.from_dict(dict(task.config))
        try:
            for event in measure(config, task.wanted, scenario, task.rounds, quality=task.quality, engine=engine):
                if isinstance(event, MeasuredGeometry):
                    found.append(event)
                elif isinstance(event, TimedStack):
                    report(event.done, event.total, f"timed again: {event.again}" if event.again else "")
        except EngineStoppedError as error:
            return tuple(found), str(error)
    return tuple(found), ""


def _simulate(task: _SimulateTask, report: Report) -> _Measured:
    found: list[MeasuredGeometry] = []
    ids_BT = tensor(task.calibration, "cpu")
    parent = replace(task.parent, products="float32").on("cpu")
    for simulated in simulate(parent, task.wanted, task.scenario, task.hierarchy, ids_BT):
        found.append(simulated)
        report(len(found), len(task.wanted) + 1)
    return tuple(found), ""


def _cost_row(job: Job, timed: MeasuredGeometry, key: str) -> models.CostRow:
    geometry, shape = timed.geometry, job.parent.shape
    if geometry.role == "fixed":
        held = fixed_cost(shape, job.scenario, geometry.subblock.precision)
    elif geometry.is_around:
        held = choice_cost(Choice(shape.layers, geometry.role, geometry.subblock), shape, job.scenario)
    else:
        scenario = job.scenario.keeping(geometry.cache)
        held = mean_cost(Choice(0, geometry.role, geometry.subblock), shape, scenario)
    return _row(key, str(geometry), held + timed.cost, timed.spread)


def _row(key: str, name: str, cost: Cost, spread: float) -> models.CostRow:
    return models.CostRow(key=key, name=name, spread=spread, **vars(cost))


def _timed(geometry: Geometry, row: models.CostRow) -> MeasuredGeometry:
    """The measurement, read back from its row."""
    return MeasuredGeometry.of(geometry, row.spread, cost_of(row))


def write_options(job: Job, store: Store) -> None:
    """The search's options with what is known of each, so that it can be solved from the database alone. Where the job
    checks predicted scores, an option has its measured score as soon as that is known."""
    keys = {choice: job.score_key(choice) for choice in [*job.variants, *job.caches]}
    if job.request.score.rounded == "checked":
        checked = {choice: job.measured_score_key(choice) for choice in job.to_predict}
        known = store.scores(list(checked.values()))
        keys |= {choice: key for choice, key in checked.items() if key in known}
    kept = [_option_row(job, cache, keys, job.kept_geometries(cache)) for cache in job.caches]
    own = [_option_row(job, choice, keys, geometries(choice)) for choice in job.choices]
    store.set_options(job.id, [*own, *kept])


def _option_row(job: Job, choice: Choice, keys: Mapping[Choice, str], costs: Iterable[Geometry]) -> models.OptionRow:
    """An option whose costs are those of these geometries; `keys` are those of all scores."""
    build = () if choice.role == "cache" else job.library_parts(choice)
    return models.OptionRow(
        search_id=job.id,
        choice=str(choice),
        first_slot=choice.first_slot,
        span=choice.span,
        name=str(choice.what),
        score_key=keys.get(choice),
        cost_keys=[job.used_cost_key(geometry) for geometry in costs],
        distillation_key=job.distillation_key(build[0]) if len(build) == 1 else None,
    )


def parent_costs(job: Job, store: Store) -> dict[str, Any]:
    """The cost of the fixed part and of the whole parent (the sum of its parts), as the search's row keeps them. Where
    tables are options, they are the fixed part, and nothing is fixed."""
    measured = store.costs([job.used_cost_key(geometry) for geometry in job.to_measure])
    whole = sum((cost_of(measured[job.used_cost_key(geometry)]) for geometry in _own(job)), ZERO)
    fixed = ZERO if job.request.space.precision else cost_of(measured[job.used_cost_key(FIXED)])
    return ParentCosts(fixed, whole).plain()
