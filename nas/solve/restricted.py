"""A search that chose precisions, with only a part of its options: the parent's shapes, or one precision throughout.

Scores and costs are the search's own, so a restricted question takes no new measurement.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Literal

from blocklib.block import Architecture, Choice
from nas.errors import UsageError
from nas.solve.solve import Measured

Only = Literal["precisions", "shapes"]


def restricted(known: Measured, only: Only | None) -> Measured:
    """`known` with the options of one kind. "precisions": the parent's shapes, in every precision. "shapes": every
    shape, in `one_precision`. None: all.

    Raises UsageError where the search chose no precisions.
    """
    if only is None:
        return known
    if not known.request.precisions:
        raise UsageError(
            f"search {known.search.name} ({known.search.id}) chose no precisions, so there is nothing to leave out; "
            "its job has none in space.precision"
        )
    return _with(known, _own(known)) if only == "precisions" else stored_in(known, one_precision(known))


def stored_in(known: Measured, precision: str) -> Measured:
    """`known` with everything stored in one precision."""
    return _with(known, (choice for choice in known.costs if choice.precision in ("", precision)))


def _with(known: Measured, choices: Iterable[Choice]) -> Measured:
    allowed = set(choices)
    under = {cache: _having(each, allowed) for cache, each in known.by_cache.items()}
    return replace(_having(known, allowed), by_cache=under)


def _having(known: Measured, allowed: Collection[Choice]) -> Measured:
    """With these of its options, and every type of keys and values."""
    return replace(
        known,
        options=tuple(
            option for option in known.options if (choice := known.choice(option)) in allowed or choice.role == "cache"
        ),
    )


def one_precision(known: Measured) -> str:
    """The precision that a search of shapes alone would store everything in: that of the scenario, else the finest of
    those offered."""
    offered = {choice.precision: cost.weight_bytes for choice, cost in known.costs.items() if choice.is_table}
    return known.scenario.dtype if known.scenario.dtype in offered else max(offered, key=lambda name: offered[name])


def uniform(known: Measured) -> dict[str, tuple[Choice, ...]]:
    """The parent in each precision throughout: its parts, by the precision's name."""
    own = tuple(_own(known))
    # Where embedding and head are one matrix, they are offered as one; were they offered apart as well, both would
    # count twice.
    are_one = any(choice.role == "tables" for choice in own)
    found: dict[str, list[Choice]] = {}
    for choice in own:
        if choice.role == "tables" or not (choice.is_table and are_one):
            found.setdefault(choice.precision, []).append(choice)
    return {name: tuple(sorted(choices, key=lambda choice: choice.first_slot)) for name, choices in found.items()}


def _own(known: Measured) -> Iterator[Choice]:
    """The parent's own parts, in each precision."""
    own = set(Architecture.parse(known.search.parent_architecture).choices())
    yield from (choice for choice in known.costs if choice.is_table or choice.unrounded in own)
