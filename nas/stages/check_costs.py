"""Time whole random architectures of a search beside the parent, to see how far the sums of costs are off."""

from rich.console import Console

from blocklib.block import Architecture
from blocklib.checkpoint import inspect
from blocklib.kinds import parent_architecture
from blocklib.loading import readable
from blocklib.parent import child_config
from cost_models.engines.engines import describe, engine_of
from cost_models.timing.device_lock import alone_on
from cost_models.timing.pair import Rounds
from db.store import Store
from nas.errors import StaleSearchError, UsageError
from nas.files.home import home_of
from nas.job.request import checkpoint_of
from nas.solve.solve import Measured
from nas.stages.time_architectures import random_architectures, whole_time_row
from nas.terminal.progress import bar
from nas.text.parent_folder import parent_folder

_TAKES = 2
"""Every architecture is timed twice: the second timing says what a repeat differs by."""


def time_wholes(store: Store, known: Measured, children: int, seed: int, console: Console) -> None:
    """Time so many random architectures, and keep each timing as a row at once. Known ones are not timed again.

    Raises UsageError where nothing can be timed, StaleSearchError on another machine than the search's.
    """
    search, scenario = known.search, known.scenario
    if not known.request.is_timed_here:
        raise UsageError(f"search {search.name} simulates its machine or was given its costs, so nothing can be timed")
    here = describe(scenario)
    if here != search.hardware:
        raise StaleSearchError(f"search {search.name} was timed on {search.hardware}, not here, on {here}")
    rows = store.whole_times(search.id)
    there = {(row.architecture, row.take) for row in rows}
    correcting = {row.architecture for row in rows if row.corrects}
    own = Architecture.parse(search.parent_architecture)
    wanted = [text for text in random_architectures(known.costs, own, children, seed) if text not in correcting]
    missing = [(text, take) for text in wanted for take in range(_TAKES) if (text, take) not in there]
    if not missing:
        return
    folder = parent_folder(checkpoint_of(search.parent), home_of(store, search), code=known.request.allows_remote_code)
    found = readable(inspect(folder))
    parent = parent_architecture(found.shape)
    config = child_config(found.config, parent, found.shape)
    engine, asked = engine_of(scenario.engine), known.request.measure
    rounds = Rounds(least=10, most=100, tolerance=asked.tolerance / 2, seconds=3 * asked.time_limit)
    with (
        bar(console, "time whole architectures", "timings", len(missing)) as shown,
        alone_on(scenario.device, shown.say),
        engine.random(config, parent, scenario) as control,
    ):
        shown.say("the first")
        for done, (text, take) in enumerate(missing, 1):
            with engine.random(config, Architecture.parse(text), scenario) as other:
                timed = engine.time(control, other, scenario, rounds)
            store.add_whole_time(whole_time_row(search.id, text, timed, take))
            shown(0, done, len(missing))
