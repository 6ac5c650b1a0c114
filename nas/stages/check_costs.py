"""Time whole random architectures of a search beside the parent, to see how far the sums of costs are off."""

import random

from rich.console import Console

from blocklib.block import Architecture
from blocklib.checkpoint import inspect
from blocklib.kinds import parent_architecture
from blocklib.loading import readable
from blocklib.parent import child_config
from cost_models.engines.engines import describe, engine_of
from cost_models.timing.device_lock import alone_on
from cost_models.timing.pair import Comparison, Rounds
from db import models
from db.store import Store
from nas.errors import StaleSearchError, UsageError
from nas.files.home import home_of
from nas.job.request import checkpoint_of
from nas.solve.solve import Measured
from nas.terminal.progress import bar
from nas.text.parent_folder import parent_folder
from solvers.problem import Option

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
    wanted = random_architectures(known, children, seed)
    there = {(row.architecture, row.take) for row in store.whole_times(search.id)}
    missing = [(text, take) for text in map(str, wanted) for take in range(_TAKES) if (text, take) not in there]
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
        alone_on(scenario.device, lambda words: None),
        engine.random(config, parent, scenario) as control,
    ):
        for done, (text, take) in enumerate(missing, 1):
            with engine.random(config, Architecture.parse(text), scenario) as other:
                timed = engine.time(control, other, scenario, rounds)
            store.add_whole_time(_row(search.id, text, take, timed))
            shown(0, done, len(missing))


def random_architectures(known: Measured, count: int, seed: int) -> list[Architecture]:
    """Distinct architectures of the search's options, which are drawn slot by slot; each keeps another share of the
    parent's own, so that they are spread from the parent's cost to the cheapest. There may be fewer than `count`."""
    drawn = random.Random(seed)
    own = set(Architecture.parse(known.search.parent_architecture).choices())
    starting: dict[int, list[Option]] = {}
    for option in known.options:
        starting.setdefault(option.first, []).append(option)
    found: dict[str, Architecture] = {}
    for _ in range(20 * count):
        kept = drawn.random() * 0.9
        options: list[Option] = []
        slot = 0
        while slot < 2 * known.layers:
            parents = [option for option in starting[slot] if known.choice(option) in own]
            others = [option for option in starting[slot] if option not in parents]
            option = drawn.choice(parents if not others or (parents and drawn.random() < kept) else others)
            options.append(option)
            slot += option.span
        architecture = known.architecture(options)
        found.setdefault(str(architecture), architecture)
        if len(found) == count:
            break
    return list(found.values())


def _row(search_id: str, architecture: str, take: int, timed: Comparison) -> models.WholeTimeRow:
    prefill, decode = timed.prefill, timed.decode
    return models.WholeTimeRow(
        search_id=search_id,
        architecture=architecture,
        take=take,
        prefill_s=prefill.other,
        parent_prefill_s=prefill.control,
        prefill_spread=prefill.spread,
        contention=timed.contention,
        decode_s=None if decode is None else decode.other,
        parent_decode_s=None if decode is None else decode.control,
        decode_spread=None if decode is None else decode.spread,
    )
