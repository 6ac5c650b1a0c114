"""Gemma 3's layers that see a window of tokens, with positions of their own: whatever stands in a layer of the parent,
its attention sees as far as there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parents import FAMILIES, GEMMA3, child_of, logits, parent_from, random_ids, random_model, random_parent
from test_distil import trained
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig

from blocklib.assemble import MODULES
from blocklib.block import Architecture, Choice
from blocklib.checkpoint import inspect
from blocklib.distil import Training
from blocklib.errors import UnsupportedFormatError, UnsupportedModelError
from blocklib.families import positions_of, resized, shape_of
from blocklib.formats.decilm import check_decilm
from blocklib.formats.gguf_carrier import check_gguf
from blocklib.kinds import choice_kv_values, mean_kv_values, parent_architecture
from blocklib.loading import readable
from blocklib.parent import Parent, child_config, load_parent, own_shape
from blocklib.stream import delta, rotary, variant
from cost_models.analytic import architecture_cost, choice_cost, mean_cost
from cost_models.engines.torch_compile import CompiledSubject, TorchCompile
from cost_models.engines.torch_eager import new_cache
from cost_models.engines.torch_eager import random_model as random_engine_model
from cost_models.scenario import Scenario
from cost_models.timing.stack import Stack

WINDOW = GEMMA3["sliding_window"]


def windows_of(spelling: str) -> list[int | None]:
    parent = random_parent("gemma3_text")
    config = child_config(parent.config, Architecture.parse(spelling), parent.shape)
    return [layer.sliding_window for layer in config.per_layer_config]


def without_far_tokens(ids_BT: Tensor, window: int) -> Tensor:
    """The same with another first token, `window` tokens before one that sees so many."""
    changed_BT = ids_BT[:, : window + 1].clone()
    changed_BT[:, 0] = (changed_BT[:, 0] + 1) % 64
    return changed_BT


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 40])
def test_logits_are_those_of_gemma_to_the_bit(
    tokens: int, computed: torch.dtype, stored: torch.dtype, tmp_path: Path
) -> None:
    """Within the window and far behind it, of a file in bfloat16 too, whose norms are 1 + w in float32."""
    random_model(FAMILIES["gemma3_text"]()).to(stored).save_pretrained(tmp_path)
    parent = load_parent(str(tmp_path), computed)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=computed)
    ids = random_ids(parent, tokens=tokens)
    assert torch.equal(logits(parent.model, ids), logits(theirs, ids))


def test_a_window_hides_what_lies_before_it() -> None:
    """One layer: the last token cannot see the first one, and with a window one longer it could."""
    kinds = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}
    for window, is_hidden in ((WINDOW, True), (WINDOW + 1, False)):
        parent = random_parent("gemma3_text", **kinds, sliding_window=window)
        ids = random_ids(parent)[:, : WINDOW + 1]
        last, changed = (logits(parent.model, each)[:, -1] for each in (ids, without_far_tokens(ids, WINDOW)))
        assert torch.equal(last, changed) == is_hidden


def test_positions_of_local_layers_are_their_own() -> None:
    ids = random_ids(random_parent("gemma3_text"))
    found = logits(random_parent("gemma3_text").model, ids)
    for kind in ("full_attention", "sliding_attention"):
        rope = GEMMA3["rope_parameters"] | {kind: {"rope_type": "default", "rope_theta": 50.0}}
        other = random_parent("gemma3_text", rope_parameters=rope)
        assert not torch.allclose(logits(other.model, ids), found)
        assert other.digest != random_parent("gemma3_text").digest


def test_a_layer_sees_as_far_as_the_parents_in_its_place() -> None:
    """A window that is narrower stays so; linear attention has none, and blocks in parallel have their own each."""
    assert windows_of("kv4+ffn48 kv2+ffn16 kv1+skip window3+ffn48 window9+ffn48 window9+ffn48") == [5, 5, None, 3, 5, 9]
    assert windows_of("linear+ffn48 skip+ffn48 linear+skip skip+skip kv4+ffn48|kv4+ffn48") == [None] * 4 + [5, None]


@pytest.mark.parametrize("layer", [0, 2])
def test_a_layer_alone_is_as_in_its_place(layer: int) -> None:
    parent = random_parent("gemma3_text")
    modules = ("input_layernorm", "self_attn", "attention_output_norm")
    alone = variant(parent.model, Choice.parse(f"L{layer}.attention=kv4"), parent.layer_weights(layer, modules))
    entering_BTD = torch.randn(2, 12, 32)
    tables = rotary(parent.model, entering_BTD)
    own = parent.model.model.layers[layer]
    with torch.no_grad():
        expected = own.attended(entering_BTD, position_embeddings=tables, attention_mask=None, cache=None)
        assert torch.equal(delta(alone, entering_BTD, tables), expected)


def test_a_subblock_is_distilled_with_both_its_norms() -> None:
    parent = random_parent("gemma3_text")
    choices = [Choice.parse(text) for text in ("L0.attention=kv1", "L2.attention=kv1", "L1.ffn=ffn16")]
    found = trained(parent, {choice: Training(2048, 1e-3) for choice in choices}, least_squares=False)
    for choice in choices:
        loss, own, (before, _, behind) = (
            found[choice].loss_trained,
            parent.layer_weights(choice.layer),
            MODULES[choice.role],
        )
        assert loss is not None
        assert loss < found[choice].loss_first_weights
        for name in (f"{before}.weight", f"{behind}.weight"):
            assert not torch.equal(found[choice].weights[name], own[name])


def test_a_child_of_dropped_blocks_keeps_the_others_as_they_were() -> None:
    child = child_of(random_parent("gemma3_text"), "kv4+ffn48 skip+skip kv4+ffn48 skip+skip kv4+ffn48 kv2+ffn48")
    assert [layer.window for layer in child.model.layers] == [5, None, None, None, 5, None]
    config = resized(FAMILIES["gemma3_text"](), [0, 2, 4, 5], 2, 16)
    local, full = "sliding_attention", "full_attention"
    assert (config.num_hidden_layers, config.layer_types) == (4, [local, full, local, full])


def published(folder: Path, **given: Any) -> Path:
    """A checkpoint with a config.json as Gemma 3's are published."""
    random_model(FAMILIES["gemma3_text"](layer_types=None)).save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"], config["layer_types"]
    config |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "sliding_window_pattern": 6}
    file.write_text(json.dumps(config | given))
    return folder


def test_a_published_configuration_is_read(tmp_path: Path) -> None:
    """Layer types from their pattern, and the positions of both kinds from the older fields."""
    scaling = {"rope_type": "linear", "factor": 8.0}
    parent = load_parent(str(published(tmp_path, rope_scaling=scaling)))
    assert (parent.shape.local_layers, parent.shape.local_window) == ((0, 1, 2, 3, 4), WINDOW)
    assert parent.config.rope_parameters == {"rope_theta": 1e6} | scaling
    assert parent.config.local_rope_parameters == {"rope_theta": 1e4, "rope_type": "default"}
    theirs, ids = AutoModelForCausalLM.from_pretrained(tmp_path), random_ids(parent)
    assert torch.equal(logits(parent.model, ids), logits(theirs, ids))
    # max_position_embeddings is the stretched length.
    checkpoint = inspect(tmp_path)
    assert positions_of(readable(checkpoint).config) == positions_of(parent.config) == checkpoint.positions == 64


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_steps_that_the_model_lacks_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"Gemma3TextConfig: {named} is not supported"):
        shape_of(Gemma3TextConfig(**given))


def test_gemma_2_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Gemma2Config .*'gemma2'.* supported: gemma3_text"):
        shape_of(Gemma2Config())


def test_the_formats_that_cannot_say_it_refuse_it() -> None:
    config = random_parent("gemma3_text").config
    with pytest.raises(UnsupportedFormatError, match="DeciLM engines have no norms behind attention and FFN"):
        check_decilm([Choice.parse("L0.ffn=ffn16")], config)
    with pytest.raises(UnsupportedFormatError, match=r"no architecture of llama\.cpp carries .* gelu_pytorch_tanh"):
        check_gguf([Choice.parse("L0.ffn=ffn16")], config)


def test_tables_of_costs_say_where_norms_stand_as_before() -> None:
    assert random_parent("olmo2").shape.written["norms_after"]
    assert not random_parent("gemma3_text").shape.written["norms_after"]


# What it costs


SCENARIO = Scenario("cpu", "float32", batch=2, prompt_tokens=12, generated_tokens=4, threads=1)


@pytest.fixture(scope="module")
def parent() -> Parent:
    return parent_from(random_model(FAMILIES["gemma3_text"]()))


def test_a_cache_is_counted_by_layer(parent: Parent) -> None:
    shape = parent.shape
    values = [choice_kv_values(Choice.parse(f"L{layer}.attention=kv2"), shape, 16) for layer in range(6)]
    assert values == [2 * 2 * 8 * tokens for tokens in (4, 4, 16, 4, 4, 16)]
    assert choice_kv_values(Choice.parse("L0.attention=window3"), shape, 16) == 2 * 4 * 8 * 2
    assert choice_kv_values(Choice.parse("L1.block=kv4+ffn48|kv4+ffn48"), shape, 16) == 2 * 4 * 8 * (4 + 16)
    assert choice_kv_values(Choice.parse("L0.attention=linear"), shape, 16) == 0


def test_the_cache_of_a_pass_is_what_is_counted(parent: Parent) -> None:
    ids_BT = random_ids(parent, sequences=SCENARIO.batch, tokens=SCENARIO.context_tokens)
    with torch.no_grad():
        cache = parent.model(ids_BT, use_cache=True).past_key_values
    held = sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
    assert held == architecture_cost(parent.architecture, parent.shape, SCENARIO).cache_bytes


def test_of_a_part_in_any_layer_it_is_the_mean(parent: Parent) -> None:
    shape, attention = parent.shape, Choice.parse("L0.attention=kv4")
    whole = sum(choice_cost(replace(attention, layer=layer), shape, SCENARIO).cache_bytes for layer in range(6))
    mean = mean_cost(attention, shape, SCENARIO)
    assert mean.cache_bytes == whole / 6 > choice_cost(attention, shape, SCENARIO).cache_bytes
    assert mean_kv_values(Choice.parse("L0.ffn=ffn16"), shape, 16) == 0
    llama = random_parent().shape
    assert mean_cost(attention, llama, SCENARIO) == choice_cost(attention, llama, SCENARIO)


def test_engines_time_the_windows_of_the_parent(parent: Parent) -> None:
    """Compiled layers on static caches give the logits of eager ones on caches that grow."""
    compiled = replace(SCENARIO, batch=1, engine="torch_compile")
    architecture = Architecture(parent.architecture.blocks[:3])
    eager, ids_BT = random_engine_model(parent.config, architecture, compiled), random_ids(parent)[:1]
    with TorchCompile().random(parent.config, architecture, compiled) as model, torch.inference_mode():
        subject, cache = CompiledSubject(model, compiled), new_cache(eager)
        for given_BT, before in ((ids_BT, 0), (ids_BT[:, :1], 12), (ids_BT[:, 1:2], 13)):
            expected = eager(input_ids=given_BT, cache=cache, use_cache=True, logits_to_keep=1).logits
            torch.testing.assert_close(subject.logits(given_BT, before), expected, rtol=1e-4, atol=1e-5)
    assert [layer.window for layer in eager.model.layers] == [5, 5, None]


def test_a_stack_has_the_parents_layers_again_and_again(parent: Parent) -> None:
    stack = Stack(parent_architecture(parent.shape).blocks[0], 10)
    config = child_config(parent.config, stack.architecture, own_shape(parent.config))
    assert [layer.sliding_window for layer in config.per_layer_config] == [5, 5, None] * 3 + [5]
    assert [layer.local for layer in config.per_layer_config] == [True, True, False] * 3 + [True]
