"""A space is spelled out for the parent at hand: its own first, nothing twice, nothing it cannot hold."""

from dataclasses import replace

import pytest
from small_costs import config_of

from blocklib.block import SKIP, Block, Subblock
from blocklib.errors import SubblockError
from blocklib.kinds import parent_architecture
from blocklib.parent import own_shape
from nas.errors import JobError
from nas.job.config import parse
from nas.job.sections import Space
from nas.job.space import check_kinds, choices
from nas.job.training import Heal

SHAPE = own_shape(config_of())
"""4 layers of kv2+ffn24."""


def space(**given: object) -> Space:
    nothing = {"attention": [], "ffn": [], "fuse": None, "drop_blocks": False}
    return Space.model_validate(nothing | given)


def spelled(asked: Space, layer: int = 0) -> list[str]:
    return [str(choice) for choice in choices(asked, SHAPE) if choice.layer == layer]


def test_the_parents_own_is_always_there_and_first() -> None:
    found = choices(space(ffn=["skip"]), SHAPE)
    assert [choice for choice in found if choice.what != SKIP] == list(parent_architecture(SHAPE).choices())
    assert spelled(space(ffn=["skip"])) == ["L0.attention=kv2", "L0.ffn=ffn24", "L0.ffn=skip"]


def test_shares_become_sizes_and_equal_ones_are_one() -> None:
    asked = space(attention=["kv50%", "kv1"], ffn=["100%", "50%", "ffn8", "33%"])
    # To the nearest multiple of 8: a third of 24 is 8, which is there already; a half is 12, halfway between two.
    assert spelled(asked) == ["L0.attention=kv2", "L0.attention=kv1", "L0.ffn=ffn24", "L0.ffn=ffn16", "L0.ffn=ffn8"]


def test_runs_are_of_the_parents_own_ffns_and_end_with_it() -> None:
    runs = [str(c) for c in choices(space(fuse={"longest": 3}), SHAPE) if c.span > 1]
    assert runs == [
        "L0.ffn=fuse(ffn24,ffn24)", "L0.ffn=fuse(ffn24,ffn24,ffn24)",
        "L1.ffn=fuse(ffn24,ffn24)", "L1.ffn=fuse(ffn24,ffn24,ffn24)",
        "L2.ffn=fuse(ffn24,ffn24)",
    ]  # fmt: skip
    assert "L0.ffn=fuse_last(ffn24,ffn24)" in spelled(space(fuse={"longest": 2, "norm": "last"}))


def test_pairs_are_every_two_and_a_dropped_block_is_one_of_them() -> None:
    asked = {"attention": ["kv1", "skip"], "ffn": ["50%", "skip"]}
    pairs = [choice for choice in choices(space(**asked, pairs=True, drop_blocks=True), SHAPE) if choice.layer == 0]
    blocks = [choice.what for choice in pairs if isinstance(choice.what, Block)]
    assert blocks == [Block.parse(text) for text in ("kv1+ffn16", "kv1+skip", "skip+ffn16", "skip+skip")]
    assert "L0.block=skip+skip" in spelled(space(drop_blocks=True))
    assert "L0.block=skip+skip" not in spelled(space(**asked))


def test_a_decilm_child_starts_with_attention_and_has_widths_that_every_engine_reads() -> None:
    shape = replace(SHAPE, ffn_width=1536)
    asked = space(attention=["kv1", "skip"], ffn=["60%", "skip"], pairs=True, drop_blocks=True)
    found = choices(asked, shape, format="decilm")
    first, second = ({str(c).split("=")[1] for c in found if c.layer == layer} for layer in (0, 1))
    assert second - first == {"skip+skip", "skip+ffn1024"}  # 922 rounds to four times 256.
    skipped = [str(c) for c in found if str(c).endswith("attention=skip")]
    assert skipped == [f"L{layer}.attention=skip" for layer in (1, 2, 3)]
    assert "L0.ffn=skip" in map(str, found)
    assert "L0.ffn=ffn920" in map(str, choices(asked, shape))


def test_a_pair_is_made_of_what_the_library_holds() -> None:
    (pair,) = [c for c in choices(space(attention=["kv1"], ffn=["50%"], pairs=True), SHAPE) if c.role == "block"][:1]
    assert [(part.role, part.what) for part in pair.parts] == [
        ("attention", Subblock.parse("kv1")),
        ("ffn", Subblock.parse("ffn16")),
    ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"attention": ["kv75%"]}, r"kv75% of the parent's 2 KV heads is 1\.5"),
        ({"attention": ["kv4"]}, "kv4"),
        ({"ffn": ["ffn32"]}, "ffn32"),
    ],
)
def test_what_the_parent_cannot_hold_is_named(asked: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        choices(space(**asked), SHAPE)


def test_settings_of_a_kind_there_is_not_are_a_mistake() -> None:
    check_kinds(["kv", "fuse_last", "linear"])
    with pytest.raises(ValueError, match=r"distill\.kinds\.skip: there is no such kind; kinds: dip, .*window"):
        check_kinds(["skip"])


@pytest.mark.parametrize(
    ("role", "option"),
    [
        *(("attention", option) for option in ("kv3", "kv0", "window0", "linear4", "nothing")),
        *(("ffn", option) for option in ("ffn99999999999", "moe16x2k40", "ultra4x60", "ultra4", "skip2", "kv2")),
    ],
)
def test_an_option_the_parent_cannot_hold_is_named_with_its_key(role: str, option: str) -> None:
    with pytest.raises(SubblockError, match=rf"^space\.{role}: {option}: "):
        choices(space(**{role: ["skip", option]}), SHAPE)


def test_a_type_that_fits_no_row_is_refused_with_those_that_do() -> None:
    odd = replace(SHAPE, hidden=40, heads=2, head_dim=32)
    with pytest.raises(JobError, match="no type stores rows in blocks that divide the parent's, of 40 and 64 numbers"):
        choices(space(precision="all"), odd)
    with pytest.raises(JobError, match=r"q4_0 stores rows in blocks that do not divide.* 40 and 64 .*f16, bf16, f32"):
        choices(space(precision=["q4_0"]), odd)


def test_a_child_of_the_parents_shapes_is_healed_only_if_asked() -> None:
    job = "parent: embedded\ndata: {train: stdlib}\nbudget: {file: 70%}\nexport: {format: gguf}\n"
    alone = job + "space: {attention: [], ffn: [], fuse: null, drop_blocks: false, precision: [q4_0]}\n"
    assert parse(alone, "job.yaml").heal is None
    assert parse(alone + "heal: {tokens: 4096}\n", "job.yaml").heal == Heal(tokens=4096)
    assert parse(job + "space: {precision: [q4_0]}\n", "job.yaml").heal == Heal()
