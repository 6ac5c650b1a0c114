"""The vocabulary: subblocks, blocks and architectures, and their one spelling.

Everything here is a frozen value that prints to its spelling and parses back: `parse(str(x)) == x`. Standard library
only. This file knows the grammar; it does not know what a kind means, which numbers it takes, or whether a parent can
hold it: each kind's own file does (`blocklib/attention/`, `blocklib/ffn/`).

    kv8                                   a subblock: kind `kv`, size `8`
    skip, linear                          subblocks without a size
    fuse(ffn512,ffn256,ffn512)            a subblock made of parts; spans one parent layer per part
    kv8+ffn512                            a block: attention + FFN
    kv8+ffn512|kv8+ffn512                 blocks in parallel: they read one input, and what they add is summed
    kv8+ffn512 skip+fuse(ffn512,ffn512)   an architecture: blocks that tile the parent's layers
    L3.ffn=ffn256                         a choice: what stands at which slots
    kv8@q8_0, fuse(ffn512,ffn512)@q4_0    a subblock whose weights are stored in a precision
    kv8+ffn512@q4_0 tables@q5_0           an architecture that says the precision of its tables, too: embedding and head
    kv8+ffn512 embedding@q4_0 head@q8_0   the same where embedding and head are two matrices, each in its own
    L2.tables=tables@q5_0                 the choice of tables, behind a parent's layers 0 and 1
    L2.head=head@q8_0                     the choice of one of them
    kv8+ffn512 cache@q8_0                 an architecture that says the type of its keys and values, last of all
    L1.cache=cache@q8_0                   the choice of that, behind a parent's layer 0

A parent of L layers has 2L slots in a row, A0 F0 A1 F1 ... : attention of layer l at slot 2l, its FFN at 2l + 1. Where
precisions are chosen, two more slots hold the tables: the embedding at 2L and the head at 2L + 1. Where the type of
keys and values is chosen, the next two hold that: one for keys, one for values.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from blocklib.errors import SpellingError

Role = Literal["attention", "ffn", "block", "tables", "embedding", "head", "cache"]
TABLE_ROLES: tuple[Role, ...] = ("tables", "embedding", "head")
"""The roles of what stands around the layers; such a subblock's kind is the name of its role."""
_BEHIND: tuple[Role, ...] = (*TABLE_ROLES, "cache")
"""The roles of what has slots behind those of the layers."""

_SUBBLOCK = re.compile(r"([a-z]+(?:_[a-z]+)*?)((?:0|[1-9]\d*)(?:[a-z](?:0|[1-9]\d*))*)?")
_PRECISION = re.compile(r"[a-z]+\d+(_[a-z0-9]+)*")
_CHOICE = re.compile(r"L(0|[1-9]\d*)\.(attention|ffn|block|tables|embedding|head|cache)=(.+)")


@dataclass(frozen=True)
class Subblock:
    """The attention or the FFN of a layer: a kind, its size ("" where it has none), and its parts where it is a run.

    `size` is numbers separated by single letters, as in `16x512k4`. Parts are FFN subblocks, one per parent layer.
    `precision` is how its weights are stored, by the engine's name; "": as the scenario says.
    """

    kind: str
    size: str = ""
    parts: tuple["Subblock", ...] = ()
    precision: str = ""

    def __str__(self) -> str:
        stored = f"@{self.precision}" if self.precision else ""
        if self.parts:
            return f"{self.kind}({','.join(map(str, self.parts))}){stored}"
        return f"{self.kind}{self.size}{stored}"

    def at(self, precision: str) -> "Subblock":
        """The same with its weights stored in that precision; "": in none of its own."""
        return replace(self, precision=precision)

    @property
    def unrounded(self) -> "Subblock":
        """The same without a precision of its own."""
        return self.at("")

    @property
    def layers(self) -> int:
        """How many parent layers it spans."""
        return max(1, len(self.parts))

    @property
    def number(self) -> int:
        """The size where it is one plain number: the width of `ffn512`, the KV heads of `kv8`."""
        if not self.size.isdigit():
            raise SpellingError(f"{self} has no single number")
        return int(self.size)

    @property
    def numbers(self) -> dict[str, int]:
        """The size's numbers by the letter before each, "" before the first: 16x512k4 is {"": 16, "x": 512, "k": 4}.

        Raises SpellingError where a letter comes twice.
        """
        found = re.findall(r"([a-z]?)(\d+)", self.size)
        if len({letter for letter, _ in found}) < len(found):
            raise SpellingError(f"{self}: each letter of a size stands before one number")
        return {letter: int(digits) for letter, digits in found}

    @staticmethod
    def parse(text: str) -> "Subblock":
        """Raises SpellingError where `text` is not a spelling."""
        whole, at, precision = text.rpartition("@")
        if at:
            if not _PRECISION.fullmatch(precision) or "@" in whole:
                raise SpellingError(f"{text!r}: a precision stands once, at the end, like kv8@q8_0")
            return Subblock.parse(whole).at(precision)
        opened = text.find("(")
        if opened >= 0:
            kind, inner = text[:opened], text[opened + 1 : -1]
            if not re.fullmatch(r"[a-z]+(_[a-z]+)*", kind) or not text.endswith(")") or not inner:
                raise SpellingError(f"{text!r} is not a subblock; a run is spelled like fuse(ffn512,ffn512)")
            return Subblock(kind, parts=tuple(Subblock.parse(part) for part in inner.split(",")))
        match = _SUBBLOCK.fullmatch(text)
        if match is None:
            raise SpellingError(
                f"{text!r} is not a subblock; spell it like kv8, ffn512, linear, skip or fuse(ffn512,ffn512)"
            )
        return Subblock(match[1], match[2] or "")


SKIP = Subblock("skip")
TABLES = Subblock("tables")
"""Embedding and head, as one."""
CACHE = Subblock("cache")
"""Keys and values: no weights, but all layers keep theirs in one type."""


@dataclass(frozen=True)
class Block:
    """Attention + FFN. Spans one parent layer, or as many as its FFN is a run of."""

    attention: Subblock
    ffn: Subblock

    def __str__(self) -> str:
        return f"{self.attention}+{self.ffn}"

    @property
    def layers(self) -> int:
        return self.ffn.layers

    @property
    def unrounded(self) -> "Block":
        return Block(self.attention.unrounded, self.ffn.unrounded)

    @staticmethod
    def parse(text: str) -> "Block":
        attention, plus, ffn = text.partition("+")
        if not plus:
            raise SpellingError(f"{text!r} is not a block; spell it attention+ffn, like kv8+ffn512")
        return Block(Subblock.parse(attention), Subblock.parse(ffn))


@dataclass(frozen=True)
class Parallel:
    """Two or more blocks that all read what enters the first, and whose outputs are summed onto it.

    FFN Fusion (arXiv 2503.18908), appendix B: full-block parallelism.
    """

    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        return "|".join(map(str, self.blocks))

    @property
    def layers(self) -> int:
        return sum(block.layers for block in self.blocks)

    @property
    def unrounded(self) -> "Parallel":
        return Parallel(tuple(block.unrounded for block in self.blocks))

    @staticmethod
    def parse(text: str) -> "Block | Parallel":
        """A block, or several in parallel."""
        blocks = tuple(Block.parse(part) for part in text.split("|"))
        return blocks[0] if len(blocks) == 1 else Parallel(blocks)


@dataclass(frozen=True)
class Choice:
    """A choice, which stands at some slots: one option of one search, or one subblock of the library.

    `layer` is the parent layer of its first slot; of what stands behind the layers, half its first slot. A `block`
    choice holds a whole block or several in parallel, any other a subblock.
    """

    layer: int
    role: Role
    what: Subblock | Block | Parallel

    def __post_init__(self) -> None:
        assert isinstance(self.what, Subblock) == (self.role != "block"), (self.role, self.what)

    def __str__(self) -> str:
        return f"L{self.layer}.{self.role}={self.what}"

    @property
    def first_slot(self) -> int:
        return 2 * self.layer + (self.role in ("ffn", "head"))

    @property
    def span(self) -> int:
        """Slots covered. A run of n FFNs covers the n - 1 attentions between them too."""
        if self.role in ("attention", *_BEHIND):
            return 2 if self.role in ("tables", "cache") else 1
        return 2 * self.what.layers - (self.role == "ffn")

    @property
    def end_layer(self) -> int:
        """The first parent layer after it."""
        if self.role in _BEHIND:
            return self.layer
        return self.layer + (self.what.layers if self.role != "attention" else 1)

    @property
    def is_table(self) -> bool:
        """Whether it is around the layers: the embedding, the head, or both."""
        return self.role in TABLE_ROLES

    @property
    def precision(self) -> str:
        """The precision of a subblock's weights; "" where it has none of its own, or is more than one."""
        return self.what.precision if isinstance(self.what, Subblock) else ""

    @property
    def unrounded(self) -> "Choice":
        """The same without precisions."""
        return replace(self, what=self.what.unrounded)

    @property
    def parts(self) -> tuple["Choice", ...]:
        """The subblock choices it is made of, in order: what the library holds, and what is measured."""
        if isinstance(self.what, Subblock):
            return (self,)
        found: list[Choice] = []
        layer = self.layer
        for block in self.what.blocks if isinstance(self.what, Parallel) else (self.what,):
            found += [Choice(layer, "attention", block.attention), Choice(layer, "ffn", block.ffn)]
            layer += block.layers
        return tuple(found)

    @property
    def subblocks(self) -> tuple[tuple[Role, Subblock], ...]:
        """Its subblocks with their roles, in order."""
        return tuple((part.role, part.what) for part in self.parts if isinstance(part.what, Subblock))

    @staticmethod
    def parse(text: str) -> "Choice":
        match = _CHOICE.fullmatch(text)
        if match is None:
            raise SpellingError(f"{text!r} is not a choice; spell it like L3.ffn=ffn256 or L3.block=skip+skip")
        layer, role, what = int(match[1]), match[2], match[3]
        if role == "block":
            return Choice(layer, "block", Parallel.parse(what))
        subblock = Subblock.parse(what)
        if role in _BEHIND and subblock.kind != role:
            raise SpellingError(f"{text!r}: at the slot of {role} stands {role}, as in L{layer}.{role}={role}@q8_0")
        roles: dict[str, Role] = {each: each for each in ("attention", "ffn", *_BEHIND)}
        return Choice(layer, roles[role], subblock)


@dataclass(frozen=True)
class Architecture:
    """Blocks that tile the parent's layers, first to last, and the tables where they have a precision of their own:
    none, `tables@q8_0`, or `embedding@q4_0` and `head@q8_0`.

    `cache` is the type of all keys and values, by the engine's name; "": as the scenario says.
    """

    blocks: tuple[Block | Parallel, ...]
    tables: tuple[Subblock, ...] = ()
    cache: str = ""

    def __str__(self) -> str:
        cache = (CACHE.at(self.cache),) if self.cache else ()
        return " ".join(map(str, (*self.blocks, *self.tables, *cache)))

    @property
    def unrounded(self) -> "Architecture":
        """The same without precisions of weights."""
        return replace(self, blocks=tuple(block.unrounded for block in self.blocks), tables=())

    @property
    def has_own_head(self) -> bool:
        """Whether its head is a matrix of its own, whatever the parent's is."""
        return any(table.kind == "head" for table in self.tables)

    @property
    def layers(self) -> int:
        """Parent layers covered; the child itself has one layer for each of `placed()`."""
        return sum(block.layers for block in self.blocks)

    def placed(self) -> Iterator[tuple[int, Block]]:
        """Each block, one after the other whether parallel or not, with the parent layer it starts at."""
        layer = 0
        for entry in self.blocks:
            for block in entry.blocks if isinstance(entry, Parallel) else (entry,):
                yield layer, block
                layer += block.layers

    def joined(self) -> tuple[bool, ...]:
        """For each block of `placed()`, whether it reads what the one before it reads."""
        found: list[bool] = []
        for entry in self.blocks:
            found += [False] + [True] * (len(entry.blocks) - 1 if isinstance(entry, Parallel) else 0)
        return tuple(found)

    def choices(self) -> tuple[Choice, ...]:
        """Its subblocks as choices, blocks in parallel as one, in slot order, the tables last where they have a
        precision; together they tile every slot of weights once."""
        found: list[Choice] = []
        layer = 0
        for entry in self.blocks:
            whole = Choice(layer, "block", entry)
            found += [whole] if isinstance(entry, Parallel) else whole.parts
            layer += entry.layers
        return (*found, *self.table_choices())

    def table_choices(self) -> tuple[Choice, ...]:
        """Its tables as choices, in slot order; none if they have no precision."""
        roles: dict[str, Role] = {role: role for role in TABLE_ROLES}
        return tuple(Choice(self.layers, roles[table.kind], table) for table in self.tables)

    def with_(self, choice: Choice) -> "Architecture":
        """This architecture with one choice put in place of whatever stood at its slots.

        Raises ValueError where the choice cuts a run in two or reaches past the last layer, or is one table of two.
        """
        chosen = {choice.first_slot: choice}
        covered = set(range(choice.first_slot, choice.first_slot + choice.span))
        for old in self.choices():
            slots = set(range(old.first_slot, old.first_slot + old.span))
            if not slots & covered:
                chosen[old.first_slot] = old
            elif not slots <= covered:
                raise ValueError(f"{choice} cuts {old} in two")
        made = Architecture.of(tuple(chosen[slot] for slot in sorted(chosen)), self.layers)
        return replace(made, cache=made.cache or self.cache)

    @staticmethod
    def of(choices: tuple[Choice, ...], layers: int) -> "Architecture":
        """The architecture whose slots are tiled by `choices`, given in slot order. What stands
        behind the layers may be left out.

        Raises ValueError where a slot is left open or covered twice.
        """
        if choices and choices[-1].role == "cache":
            return replace(Architecture.of(choices[:-1], layers), cache=choices[-1].precision)
        slot, attention = 0, SKIP
        blocks: list[Block | Parallel] = []
        tables = tuple(choice.what for choice in choices if choice.is_table and isinstance(choice.what, Subblock))
        if tables and _kinds(tables) not in _TABLES_TOGETHER:
            raise ValueError(f"{_spelled(tables)}: tables stand alone, or embedding and head together")
        for choice in choices[: len(choices) - len(tables)]:
            if choice.first_slot != slot:
                raise ValueError(f"slot {slot} is not where {choice} starts")
            slot += choice.span
            if not isinstance(choice.what, Subblock):
                blocks.append(choice.what)
            elif choice.role == "attention":
                attention = choice.what
            else:
                blocks.append(Block(attention, choice.what))
        if slot != 2 * layers:
            raise ValueError(f"the choices cover {slot} of {2 * layers} slots")
        return Architecture(tuple(blocks), tables)

    @staticmethod
    def parse(text: str) -> "Architecture":
        if not text.split():
            raise SpellingError("an architecture has at least one block, like kv8+ffn512")
        words = text.split()
        blocks = [word for word in words if "+" in word]
        tables = tuple(Subblock.parse(word) for word in words[len(blocks) :])
        cache = tables[-1].precision if tables and tables[-1].unrounded == CACHE else ""
        tables = tables[:-1] if cache else tables
        if not blocks or words[: len(blocks)] != blocks or not _may_stand_behind(tables):
            raise SpellingError(
                f"{text!r} is no architecture: after its blocks may stand tables@q8_0, or embedding@q4_0 head@q8_0, "
                "and then cache@q8_0"
            )
        return Architecture(tuple(Parallel.parse(part) for part in blocks), tables, cache)


_TABLES_TOGETHER = (("tables",), ("embedding", "head"))


def _kinds(tables: tuple[Subblock, ...]) -> tuple[str, ...]:
    return tuple(table.kind for table in tables)


def _may_stand_behind(tables: tuple[Subblock, ...]) -> bool:
    """Whether these may stand behind an architecture's blocks."""
    are_alone = not tables or _kinds(tables) in _TABLES_TOGETHER
    return are_alone and all(table.precision and not table.size and not table.parts for table in tables)


def _spelled(tables: tuple[Subblock, ...]) -> str:
    return " ".join(map(str, tables))
