"""SmolLM3's layers without positions: whatever stands in a layer of the parent, its attention is turned as there."""

from dataclasses import replace

import pytest
import torch
from parents import FAMILIES, child_of, logits, parent_from, random_ids, random_model, random_parent
from transformers import SmolLM3Config

from blocklib.block import Architecture, Choice
from blocklib.errors import UnsupportedFormatError, UnsupportedModelError
from blocklib.families import resized, shape_of
from blocklib.formats.decilm import check_decilm
from blocklib.parent import child_config
from blocklib.stream import variant


def rotary_of(spelling: str) -> list[bool]:
    parent = random_parent("smollm3")
    config = child_config(parent.config, Architecture.parse(spelling), parent.shape)
    return [layer.rotary for layer in config.per_layer_config]


def test_every_second_layer_of_the_parent_has_none() -> None:
    assert random_parent("smollm3").config.unrotated_layers == [1, 3, 5]
    assert random_parent("llama").config.unrotated_layers == []


def test_a_layer_is_turned_as_the_parents_where_it_starts() -> None:
    """A run of FFNs takes the attention of its first layer, and blocks in parallel their own each."""
    assert rotary_of("kv4+fuse(ffn48,ffn48) kv4+ffn48 kv4+ffn48|kv4+ffn48 kv4+ffn48") == [
        True,
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_alone_is_turned_as_in_its_place(layer: int) -> None:
    parent = random_parent("smollm3")
    weights = parent.layer_weights(layer, ("input_layernorm", "self_attn"))
    alone = variant(parent.model, Choice.parse(f"L{layer}.attention=kv4"), weights)
    assert alone.self_attn is not None
    assert alone.self_attn.rotary == (layer == 0)


def test_the_digest_knows_which_layers_have_none() -> None:
    model = random_model(FAMILIES["smollm3"]())
    digest, ids = parent_from(model).digest, random_ids(random_parent("smollm3"))
    model.config.no_rope_layers = [1] * 6
    turned = parent_from(model)
    assert turned.digest != digest
    assert not torch.allclose(logits(turned.model, ids), logits(random_parent("smollm3").model, ids))


def test_a_list_longer_than_the_layers_is_read_as_far_as_they_go() -> None:
    model = random_model(FAMILIES["smollm3"](no_rope_layers=[1, 0, 1, 0, 1, 0, 0, 0]))
    assert parent_from(model).config.unrotated_layers == [1, 3, 5]


def test_windows_in_the_layers_without_positions_are_refused() -> None:
    config = SmolLM3Config(use_sliding_window=True, sliding_window=128)
    with pytest.raises(UnsupportedModelError, match="SmolLM3Config: a parent with sliding-window attention"):
        shape_of(config)


def test_decilm_refuses_them() -> None:
    with pytest.raises(UnsupportedFormatError, match="DeciLM engines have no layers whose attention has no positions"):
        check_decilm([Choice.parse("L0.ffn=ffn16")], random_parent("smollm3").config)


def test_a_resized_configuration_lists_those_that_are_left() -> None:
    config = resized(FAMILIES["smollm3"](), [0, 1, 3], 2, 16)
    assert (config.num_hidden_layers, config.no_rope_layers) == (3, [1, 0, 0])
    assert replace(shape_of(config), layers=6) != shape_of(FAMILIES["smollm3"]())


def test_a_child_of_dropped_blocks_keeps_the_others_as_they_were() -> None:
    parent = random_parent("smollm3")
    child = child_of(parent, "kv4+ffn48 skip+skip kv4+ffn48 kv4+ffn48 skip+skip kv4+ffn48")
    turned = [layer.self_attn.rotary for layer in child.model.layers if layer.self_attn is not None]
    assert turned == [True, True, False, False]
