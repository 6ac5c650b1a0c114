"""Measure the costs of a job's options on this machine, into a table for the machine that builds.

It needs the parent's sizes alone: models are timed with random weights, and no text is read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from blocklib.checkpoint import inspect
from blocklib.kinds import parent_architecture
from blocklib.loading import readable
from blocklib.parent import child_config
from cost_models.energy.meter import meter_of
from cost_models.engines.engines import describe, engine_of
from cost_models.geometry import Geometry, all_geometries, geometries_of
from cost_models.timing.device_lock import alone_on
from cost_models.timing.measure import TimedStack, measure
from cost_models.timing.measured_geometry import MeasuredGeometry
from cost_models.timing.pair import Rounds
from cost_models.timing.quality import Quality
from nas.errors import TableError
from nas.job.request import Request
from nas.job.scenario import scenario_of
from nas.job.space import choices
from nas.job.units import needs_meter
from nas.stages.clock import clock, on_clock
from nas.stages.cost_table import CostTable, read_cost_table, with_times
from nas.terminal.progress import bar
from nas.text.parent_folder import parent_folder


def measure_table(request: Request, out: Path, console: Console) -> CostTable:
    """Write the seconds of every geometry of the job's space to `out`. Times that stand there already are kept, and
    only the rest is measured, on the clock of those: of the parent's own parts. If one of these is missing, all that
    stand there are measured again.

    Raises TableError where `out` holds times of another machine, scenario or parent, EngineStoppedError where the
    engine ends: the times until then are in `out`.
    """
    scenario, asked = scenario_of(request), request.measure
    found = readable(inspect(parent_folder(request.checkpoint, request.home, code=request.allow_remote_code)))
    config = child_config(found.config, parent_architecture(found.shape), found.shape)
    options = choices(request.space, found.shape, format=request.export_format)
    if asked.whole_models is not None:
        console.print("measure.whole_models is for searches: the table gets the parts' own times", style="yellow")
    engine = engine_of(scenario.engine, meter_of(scenario.device) if needs_meter(request.budget) else None)
    engine.check_installed()
    for cache in request.space.kv_cache or ("",):
        engine.check(options, config, scenario.keeping(cache))
    empty = CostTable(scenario=scenario, hardware=describe(scenario), shape=found.shape.written, geometries={})
    table = _table(out, empty)
    # Each of the parent's parts as often as the parent has it, the whole of it together.
    own = list(all_geometries(parent_architecture(found.shape)))
    wanted = dict.fromkeys([*own, *geometries_of(options, request.space.kv_cache)])
    known = table.times
    if known and not known.keys() >= {*own}:
        lacking = ", ".join(str(part) for part in dict.fromkeys(own) if part not in known)
        console.print(f"{out} lacks the parent's own {lacking}, which all times are relative to: all are taken again",
                      style="yellow", soft_wrap=True, highlight=False)  # fmt: skip
        wanted |= dict.fromkeys(known)
        table, known = empty, {}
    missing = [part for part in wanted if part not in known]
    quality = Quality(asked.spread_allowed, asked.contention_allowed, asked.patience)
    times: dict[Geometry, MeasuredGeometry] = {}
    if missing:
        rounds = Rounds(tolerance=asked.tolerance, seconds=asked.time_limit)
        with bar(console, "measure costs", "stacks") as shown, alone_on(scenario.device, shown.say):
            shown.say("the parent and its parts")
            for event in measure(config, missing, scenario, rounds, quality, engine):
                if isinstance(event, TimedStack):
                    shown(0, event.done, event.total, event.again)
                elif isinstance(event, MeasuredGeometry):
                    times[event.geometry] = event
                    if event.geometry in missing and times.keys() >= {*own}:
                        table = _extended(table, times, missing, clock(known, times, own)).write(out)
    _tell_faults(table, quality, console)
    return table


def _table(out: Path, empty: CostTable) -> CostTable:
    """The table in `out`, which must be of the same scenario, parent and machine as `empty`; that if there is none."""
    if not out.exists():
        return empty
    table = read_cost_table(out)
    table.check_scenario(empty.scenario, out)
    table.check_shape(empty.shape, out)
    if table.hardware != empty.hardware:
        raise TableError(f"{out}: it was measured on {table.hardware}, not on {empty.hardware}; name another file")
    return table


def _extended(
    table: CostTable,
    times: Mapping[Geometry, MeasuredGeometry],
    missing: Sequence[Geometry],
    factors: Mapping[str, float],
) -> CostTable:
    return with_times(table, {part: on_clock(times[part], factors) for part in missing if part in times})


def _tell_faults(table: CostTable, quality: Quality, console: Console) -> None:
    """Print which times are worse than the job allows: the job that reads the table takes them as they are."""
    for part, timed in table.times.items():
        if fault := quality.fault(timed.spread, timed.contention):
            console.print(
                f"{part} has {fault}; to take it again, remove it from the table and run the same command",
                style="yellow", soft_wrap=True, highlight=False,
            )  # fmt: skip
