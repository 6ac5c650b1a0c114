"""The child's architecture beside its parent's, as cells of a table: one row per layer, one bar per subblock.

Knows where each bar goes, how wide it is and what it says; the template draws it. Does not know what a kind computes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from blocklib.block import Architecture, Choice, Role, Subblock


@dataclass(frozen=True)
class DrawnSubblock:
    """One subblock. `width` is its size as a share of the largest drawn; `rows` is how many layers it spans.

    `kind` is the subblock's kind if that has a colour of its own, `gone` for the attention of a layer inside a fused
    run of FFNs, and else `other`. `bits` are those of a weight in its precision, without scales; None where it has no
    precision of its own.
    """

    kind: str
    label: str
    width: float
    rows: int
    is_parents_own: bool
    bits: int | None = None


@dataclass(frozen=True)
class DrawnLayer:
    """One layer of the parent. A cell is None if a bar from an earlier row covers it."""

    layer: int
    parent: tuple[DrawnSubblock | None, DrawnSubblock | None]
    child: tuple[DrawnSubblock | None, DrawnSubblock | None]


def drawing(parent: Architecture, child: Architecture) -> tuple[DrawnLayer, ...]:
    """A row for each layer of the parent, first to last. The child spans as many layers as its parent."""
    assert parent.layers == child.layers, (parent.layers, child.layers)
    largest: dict[Role, float] = {
        role: max((_size(what) for at, what in (*_placed(parent), *_placed(child)) if at.role == role), default=0)
        for role in ("attention", "ffn")
    }
    own = dict(_placed(parent))
    drawn_parent, drawn_child = (
        {
            (at.layer, at.role): _bar(what, at.role, largest, own.get(at) == what.unrounded)
            for at, what in _placed(architecture)
        }
        for architecture in (parent, child)
    )
    return tuple(
        DrawnLayer(layer, _cells(drawn_parent, layer), _cells(drawn_child, layer)) for layer in range(parent.layers)
    )


@dataclass(frozen=True)
class _Place:
    layer: int
    role: Role


_GONE = Subblock("gone")
_COLOURED = ("kv", "ffn", "linear", "fuse", "fuse_last", "skip", "gone")


def _placed(architecture: Architecture) -> Iterator[tuple[_Place, Subblock]]:
    for part in (part for choice in architecture.choices() for part in choice.parts if not choice.is_table):
        assert isinstance(part.what, Subblock)
        yield _Place(part.layer, part.role), part.what
        for layer in _swallowed(part):
            yield _Place(layer, "attention"), _GONE


def _swallowed(choice: Choice) -> range:
    """The layers whose attention a run covers."""
    return range(choice.layer + 1, choice.end_layer)


def _bar(what: Subblock, role: Role, largest: dict[Role, float], is_parents_own: bool) -> DrawnSubblock:
    label = "in the run" if what == _GONE else str(what)
    width = _size(what) / largest[role] if _size(what) else 1.0
    kind = what.kind if what.kind in _COLOURED else "other"
    return DrawnSubblock(kind, label, width, what.layers, is_parents_own, _bits(what.precision))


def _bits(precision: str) -> int | None:
    """The first number in its name: 8 of q8_0, 4 of iq4_nl, 16 of bf16."""
    found = re.search(r"\d+", precision)
    return int(found[0]) if found else None


def _size(what: Subblock) -> float:
    """KV heads or FFN width; for a run the mean over its layers, so that areas are comparable; 0 for kinds without
    either."""
    if what.parts:
        return sum(map(_size, what.parts)) / len(what.parts)
    return float(what.number) if what.kind in ("kv", "ffn") else 0.0


def _cells(
    drawn: dict[tuple[int, Role], DrawnSubblock], layer: int
) -> tuple[DrawnSubblock | None, DrawnSubblock | None]:
    return drawn.get((layer, "attention")), drawn.get((layer, "ffn"))
