"""Every spelling reads back as what it spells, and architectures tile their layers."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from blocklib.block import SKIP, TABLES, Architecture, Block, Choice, Parallel, Role, Subblock
from blocklib.errors import SpellingError

kinds = st.sampled_from(["kv", "ffn", "linear", "skip", "fuse", "fuse_last", "a", "moe_of_x"])
numbers = st.sampled_from(["0", "1", "8", "50", "11008"])
sizes = st.just("") | st.builds(
    lambda first, rest: first + rest,
    numbers,
    st.just("") | st.builds("{}{}{}{}".format, st.sampled_from("kx"), numbers, st.sampled_from("ak"), numbers),
)
precisions = st.sampled_from(["", "q8_0", "iq4_nl", "bf16"])
unrounded = st.builds(Subblock, kinds, sizes)
plain = st.builds(Subblock.at, unrounded, precisions)
runs = st.builds(
    lambda kind, parts, precision: Subblock(kind, parts=tuple(parts), precision=precision),
    kinds,
    st.lists(unrounded, min_size=1, max_size=4),
    precisions,
)
ffns = plain | runs
single = st.builds(Block, plain, ffns)
parallel = st.builds(lambda found: Parallel(tuple(found)), st.lists(single, min_size=2, max_size=3))
blocks = single | parallel
architectures = st.builds(lambda found: Architecture(tuple(found)), st.lists(blocks, min_size=1, max_size=6))
known = precisions.filter(bool)
tables = st.builds(lambda name: (TABLES.at(name),), known) | st.tuples(
    st.builds(Subblock("embedding").at, known), st.builds(Subblock("head").at, known)
)
stored = st.builds(lambda found, around: replace(found, tables=around), architectures, tables)


@st.composite
def choices(draw: st.DrawFn, layers: int | None = None) -> Choice:
    """A choice that fits a parent of `layers` layers, or anywhere."""
    role: Role = draw(st.sampled_from(["attention", "ffn", "block"]))
    spellings: dict[Role, st.SearchStrategy[Any]] = {"attention": plain, "ffn": ffns, "block": blocks}
    what = draw(spellings[role])
    assume(layers is None or what.layers <= layers)
    last = 99 if layers is None else layers - (what.layers if role != "attention" else 1)
    return Choice(draw(st.integers(0, last)), role, what)


@st.composite
def placements(draw: st.DrawFn) -> tuple[Architecture, Choice]:
    """An architecture and a choice within its layers, which may cut one of its runs."""
    architecture = draw(architectures)
    return architecture, draw(choices(architecture.layers))


def slots(choice: Choice) -> set[int]:
    return set(range(choice.first_slot, choice.first_slot + choice.span))


@given(ffns)
def test_a_subblock_reads_back(subblock: Subblock) -> None:
    assert Subblock.parse(str(subblock)) == subblock


@given(blocks)
def test_a_block_reads_back(block: Block | Parallel) -> None:
    assert Parallel.parse(str(block)) == block


@given(architectures | stored)
def test_an_architecture_reads_back(architecture: Architecture) -> None:
    assert Architecture.parse(str(architecture)) == architecture


@given(architectures | stored)
def test_without_precisions_it_is_the_same_shapes(architecture: Architecture) -> None:
    assert "@" not in str(architecture.unrounded)
    shapes = [choice.unrounded for choice in architecture.choices() if not choice.is_table]
    assert architecture.unrounded.choices() == tuple(shapes)


@pytest.mark.parametrize("text", ["kv8@", "kv8@q8_0@q4_0", "fuse(ffn1@q8_0,ffn2)", "kv8@8", "@q8_0"])
def test_a_precision_stands_once_and_at_the_end(text: str) -> None:
    with pytest.raises(SpellingError):
        Subblock.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "tables@q8_0",
        "kv8+ffn2 tables",
        "kv8+ffn2 tables8@q8_0",
        "tables@q8_0 kv8+ffn2",
        "kv8+ffn2 head@q8_0",
        "kv8+ffn2 head@q8_0 embedding@q4_0",
        "kv8+ffn2 embedding@q4_0 head",
        "kv8+ffn2 tables@q8_0 tables@q8_0",
        "kv8+ffn2 embedding@q8_0 tables@q8_0 head@q8_0",
    ],
)
def test_tables_stand_behind_blocks_and_have_a_precision(text: str) -> None:
    with pytest.raises(SpellingError):
        Architecture.parse(text)


@given(choices())
def test_a_choice_reads_back(choice: Choice) -> None:
    assert Choice.parse(str(choice)) == choice


@given(st.text(max_size=12))
def test_what_parses_prints_as_it_was(text: str) -> None:
    """One spelling: there is no second way to write the same thing."""
    try:
        subblock = Subblock.parse(text)
    except ValueError:
        return
    assert str(subblock) == text


@given(architectures | stored)
def test_choices_tile_every_slot_once(architecture: Architecture) -> None:
    covered = [slot for choice in architecture.choices() for slot in sorted(slots(choice))]
    assert covered == list(range(2 * architecture.layers + (2 if architecture.tables else 0)))
    assert all(Choice.parse(str(choice)) == choice for choice in architecture.choices())
    assert Architecture.of(architecture.choices(), architecture.layers) == architecture


@pytest.mark.parametrize("text", ["L2.head=embedding@q8_0", "L2.tables=kv8", "L2.embedding=tables@q8_0"])
def test_each_table_has_its_slot(text: str) -> None:
    with pytest.raises(SpellingError):
        Choice.parse(text)


def test_one_table_of_two_is_no_architecture() -> None:
    architecture = Architecture.parse("kv8+ffn2")
    with pytest.raises(ValueError, match="together"):
        architecture.with_(Choice.parse("L1.head=head@q4_0"))
    with pytest.raises(ValueError, match="in two"):
        Architecture.parse("kv8+ffn2 tables@q8_0").with_(Choice.parse("L1.head=head@q4_0"))
    apart = Architecture.parse("kv8+ffn2 embedding@q8_0 head@q8_0")
    assert str(apart.with_(Choice.parse("L1.head=head@q4_0"))) == "kv8+ffn2 embedding@q8_0 head@q4_0"
    assert apart.has_own_head > architecture.has_own_head


@given(architectures)
def test_whole_blocks_tile_too(architecture: Architecture) -> None:
    starts = accumulate((block.layers for block in architecture.blocks), initial=0)
    whole = tuple(Choice(layer, "block", block) for layer, block in zip(starts, architecture.blocks, strict=False))
    assert Architecture.of(whole, architecture.layers) == architecture


@given(architectures)
def test_parts_are_its_subblocks_where_they_stand(architecture: Architecture) -> None:
    parts = [part for choice in architecture.choices() for part in choice.parts]
    placed = [part for layer, block in architecture.placed() for part in Choice(layer, "block", block).parts]
    assert parts == placed
    assert len(architecture.joined()) == len(parts) // 2


@given(placements())
def test_a_choice_put_in_leaves_all_else(placement: tuple[Architecture, Choice]) -> None:
    architecture, choice = placement
    cut = [old for old in architecture.choices() if slots(old) & slots(choice) and not slots(old) <= slots(choice)]
    if cut:
        with pytest.raises(ValueError, match=re.escape(f"{choice} cuts ")):
            architecture.with_(choice)
        return
    changed = architecture.with_(choice)
    assert changed.layers == architecture.layers
    inside = [part for found in changed.choices() if slots(found) & slots(choice) for part in found.parts]
    assert tuple(inside) == choice.parts
    outside = [found for found in changed.choices() if not slots(found) & slots(choice)]
    assert outside == [old for old in architecture.choices() if not slots(old) & slots(choice)]
    assert changed.with_(choice) == changed


@given(architectures | stored)
def test_its_own_choices_change_nothing(architecture: Architecture) -> None:
    for choice in architecture.choices():
        assert architecture.with_(choice) == architecture


@given(plain, plain, st.integers(0, 2))
def test_a_block_is_its_two_subblocks(attention: Subblock, ffn: Subblock, layer: int) -> None:
    parent = Architecture.parse("kv8+ffn512 kv8+ffn512 kv8+ffn512")
    apart = parent.with_(Choice(layer, "attention", attention)).with_(Choice(layer, "ffn", ffn))
    assert parent.with_(Choice(layer, "block", Block(attention, ffn))) == apart


def test_a_run_covers_the_attentions_between_its_members() -> None:
    run = Choice.parse("L1.ffn=fuse(ffn512,ffn256,ffn512)")
    assert (run.first_slot, run.span, run.end_layer) == (3, 5, 4)
    parent = Architecture.parse(" ".join(["kv8+ffn512"] * 5))
    child = parent.with_(run)
    assert str(child) == "kv8+ffn512 kv8+fuse(ffn512,ffn256,ffn512) kv8+ffn512"
    assert [layer for layer, _ in child.placed()] == [0, 1, 4]


def test_slots_of_a_layer() -> None:
    assert [Choice.parse(f"L3.{c}").first_slot for c in ("attention=kv2", "ffn=skip", "block=skip+skip")] == [6, 7, 6]
    assert [Choice.parse(f"L3.{c}").span for c in ("attention=kv2", "ffn=skip", "block=skip+skip")] == [1, 1, 2]
    assert Choice.parse("L3.block=kv2+fuse(ffn1,ffn2)").span == 4
    assert (Subblock.parse("skip"), Subblock.parse("linear")) == (SKIP, Subblock("linear"))


@pytest.mark.parametrize(
    ("parse", "text", "hint"),
    [
        (Subblock.parse, "", "spell it like kv8"),
        (Subblock.parse, "KV8", "spell it like kv8"),
        (Subblock.parse, "8kv", "spell it like kv8"),
        (Subblock.parse, "ffn08", "spell it like kv8"),
        (Subblock.parse, "ffn-8", "spell it like kv8"),
        (Subblock.parse, " ffn8", "spell it like kv8"),
        (Subblock.parse, "fuse()", "spelled like fuse"),
        (Subblock.parse, "fuse(ffn8", "spelled like fuse"),
        (Subblock.parse, "fuse(ffn8)x", "spelled like fuse"),
        (Subblock.parse, "fuse(ffn8,)", "spell it like kv8"),
        (Subblock.parse, "fuse(fuse(ffn8,ffn8),ffn8)", "spelled like fuse"),
        (Block.parse, "kv8", "attention\\+ffn"),
        (Block.parse, "kv8+", "spell it like kv8"),
        (Block.parse, "kv8+ffn8+ffn8", "spell it like kv8"),
        (Choice.parse, "L3.mlp=ffn8", "spell it like L3.ffn=ffn256"),
        (Choice.parse, "L03.ffn=ffn8", "spell it like L3.ffn=ffn256"),
        (Choice.parse, "L3.block=skip", "attention\\+ffn"),
        (Architecture.parse, "  ", "at least one block"),
    ],
)
def test_what_is_no_spelling_is_refused(parse: Callable[[str], object], text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse(text)


@pytest.mark.parametrize("text", ["skip", "moe16x688k4", "fuse(ffn8,ffn8)"])
def test_a_size_that_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{text} has no single number")):
        _ = Subblock.parse(text).number
    assert Subblock.parse("ffn512").number == 512


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("L0.attention=kv8 L0.ffn=ffn8", "cover 2 of 4 slots"),
        ("L0.attention=kv8 L1.attention=kv8 L1.ffn=ffn8", "slot 1 is not where L1.attention=kv8 starts"),
        ("L0.block=kv8+ffn8 L0.ffn=ffn8", "slot 2 is not where L0.ffn=ffn8 starts"),
        ("L0.attention=kv8 L0.ffn=fuse(ffn8,ffn8,ffn8)", "cover 6 of 4 slots"),
    ],
)
def test_slots_left_open_or_covered_twice(spelled: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Architecture.of(tuple(map(Choice.parse, spelled.split())), layers=2)


@pytest.mark.parametrize("text", ["L2.ffn=ffn8", "L2.attention=kv4", "L1.ffn=fuse(ffn8,ffn8)", "L7.block=skip+skip"])
def test_a_choice_past_the_last_layer(text: str) -> None:
    with pytest.raises(ValueError, match="slot"):
        Architecture.parse("kv8+ffn8 kv8+ffn8").with_(Choice.parse(text))
