"""Whole random architectures, and the rows that keep their times beside the parent's."""

import random
from collections.abc import Iterable

from blocklib.block import Architecture, Choice
from cost_models.timing.calibration import ArchitectureTiming, PhaseTiming
from cost_models.timing.pair import Comparison
from db import models


def random_architectures(
    choices: Iterable[Choice], parent: Architecture, count: int, seed: int
) -> dict[str, Architecture]:
    """Distinct architectures, by their spelling, drawn slot by slot from the choices of a search; each keeps another
    share of the parent's own, so that they are spread from the parent's cost to the cheapest. There may be fewer than
    `count`."""
    drawn = random.Random(seed)
    own = set(parent.choices())
    starting: dict[int, tuple[list[Choice], list[Choice]]] = {}
    for choice in choices:
        parents, others = starting.setdefault(choice.first_slot, ([], []))
        (parents if choice in own else others).append(choice)
    found: dict[str, Architecture] = {}
    for _ in range(20 * count):
        kept = drawn.random() * 0.9
        picked: list[Choice] = []
        slot = 0
        while slot in starting:
            parents, others = starting[slot]
            choice = drawn.choice(parents if not others or (parents and drawn.random() < kept) else others)
            picked.append(choice)
            slot += choice.span
        architecture = Architecture.of(tuple(picked), parent.layers)
        found.setdefault(str(architecture), architecture)
        if len(found) == count:
            break
    return found


def whole_time_row(
    search_id: str, architecture: str, timed: Comparison, take: int = 0, corrects: bool = False
) -> models.WholeTimeRow:
    """The row of one timing; `corrects` says whether costs are corrected by it."""
    prefill, decode = timed.prefill, timed.decode
    return models.WholeTimeRow(
        search_id=search_id,
        architecture=architecture,
        take=take,
        corrects=corrects,
        prefill_s=prefill.other,
        parent_prefill_s=prefill.control,
        prefill_spread=prefill.spread,
        contention=timed.contention,
        decode_s=None if decode is None else decode.other,
        parent_decode_s=None if decode is None else decode.control,
        decode_spread=None if decode is None else decode.spread,
    )


def timing_of(row: models.WholeTimeRow) -> ArchitectureTiming:
    """The timing, read back from its row."""
    phases = {"prefill_s": PhaseTiming(row.prefill_s, row.parent_prefill_s, row.prefill_spread)}
    if row.decode_s is not None and row.parent_decode_s is not None and row.decode_spread is not None:
        phases["decode_s"] = PhaseTiming(row.decode_s, row.parent_decode_s, row.decode_spread)
    return ArchitectureTiming(Architecture.parse(row.architecture), phases)
