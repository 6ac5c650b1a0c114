"""Measure the costs of a job's options on this machine, into a table for the machine that builds.

It needs the parent's sizes alone: models are timed with random weights, and no text is read.
"""

from pathlib import Path

from rich.console import Console

from blocklib.checkpoint import inspect
from blocklib.kinds import parent_architecture, parent_block
from blocklib.loading import readable
from blocklib.parent import child_config
from cost_models.energy.meter import meter_of
from cost_models.engines.engines import describe, engine_of
from cost_models.geometry import FIXED, Geometry, geometries
from cost_models.timing.device_lock import alone_on
from cost_models.timing.measure import MeasuredGeometry, TimedStack, measure
from cost_models.timing.pair import Rounds
from cost_models.timing.quality import Quality
from nas.errors import TableError
from nas.job.request import Request
from nas.job.space import choices
from nas.job.units import needs_meter
from nas.stages.cost_table import CostTable, read_cost_table, write_cost_table
from nas.stages.feasible import scenario_of
from nas.terminal.progress import bar
from nas.text.parent_folder import parent_folder


def measure_table(request: Request, out: Path, console: Console) -> CostTable:
    """Write the seconds of every geometry of the job's space to `out`. What is in `out` already, from a run that did
    not end, is kept, and only the rest is measured. Raises TableError where `out` holds another machine's or scenario's
    times, EngineStoppedError where the engine ends: the times until then are in `out`.
    """
    scenario, asked = scenario_of(request), request.measure
    found = readable(inspect(parent_folder(request.checkpoint, request.home, code=request.allow_remote_code)))
    config = child_config(found.config, parent_architecture(found.shape), found.shape)
    options = choices(request.space, found.shape, format=request.export.format)
    engine = engine_of(scenario.engine, meter_of(scenario.device) if needs_meter(request.budget) else None)
    engine.check_installed()
    engine.check(options, config, scenario)
    hardware = describe(scenario)
    own_block = parent_block(found.shape)
    own = [FIXED, Geometry("attention", own_block.attention), Geometry("ffn", own_block.ffn)]
    wanted = list(dict.fromkeys([*own, *(part for choice in options for part in geometries(choice))]))
    times: dict[Geometry, MeasuredGeometry] = {}
    if out.exists():
        table = read_cost_table(out)
        table.check_scenario(scenario, out)
        if table.hardware != hardware:
            raise TableError(f"{out}: it was measured on {table.hardware}, not on {hardware}; name another file")
        times = table.measured([part for part in wanted if str(part) in table.geometries], out)
    missing = [part for part in wanted if part not in times]
    if missing:
        rounds = Rounds(tolerance=asked.tolerance, seconds=asked.time_limit)
        quality = Quality(asked.spread_allowed, asked.contention_allowed, asked.patience)
        with bar(console, "measure costs", "stacks") as shown, alone_on(scenario.device, lambda words: None):
            for event in measure(config, missing, scenario, rounds, quality, engine):
                if isinstance(event, TimedStack):
                    shown(0, event.done, event.total, event.again)
                elif isinstance(event, MeasuredGeometry) and event.geometry in missing:
                    times[event.geometry] = event
                    write_cost_table(out, scenario, hardware, times)
    return write_cost_table(out, scenario, hardware, times)
