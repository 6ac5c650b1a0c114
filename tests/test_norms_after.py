"""Norms behind an attention and an FFN, as in OLMo 2 and Gemma 3: what is left out adds nothing, and no norm moves."""

import pytest
import torch
from parents import UNFUSED, child_of, first_weights_of, logits, random_ids, random_parent

from blocklib.activations import ComputedActivations, cached
from blocklib.assemble import assemble
from blocklib.block import Choice
from blocklib.errors import SubblockError
from blocklib.initial_weights import build
from blocklib.kinds import check
from blocklib.stream import delta, embed, rotary, slots
from nas.scoring.replace_one import score
from nas.stages.evaluate import evaluate


@pytest.mark.parametrize("family", UNFUSED)
def test_the_stream_of_a_parent_is_its_own_forward(family: str) -> None:
    parent = random_parent(family)
    ids = random_ids(parent)
    *_, last = slots(parent.model, ids, 2 * parent.shape.layers)
    final = parent.model.model.norm(last.entering_BTD + last.delta_BTD)
    assert torch.equal(parent.model.lm_head(final), logits(parent.model, ids))


@pytest.mark.parametrize("family", UNFUSED)
def test_what_a_subblock_adds_is_normed(family: str) -> None:
    parent = random_parent(family)
    layer, entering = parent.model.model.layers[2], 3 * torch.randn(2, 5, 32)
    with torch.no_grad():
        added = layer.fed_forward(entering)
        behind = {"olmo2": layer.post_attention_layernorm, "gemma3_text": layer.mlp_output_norm}[family]
        assert torch.equal(added, behind(layer.mlp(layer.ffn_input(entering))))
    weight = behind.weight + (family == "gemma3_text")
    sizes = (added / weight).square().mean(-1)
    torch.testing.assert_close(sizes, torch.ones_like(sizes), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", UNFUSED)
def test_what_is_left_out_adds_nothing(family: str) -> None:
    parent = random_parent(family)
    ids = random_ids(parent)
    empty = child_of(parent, " ".join(["skip+skip"] * 6))
    inner = parent.model.model
    assert torch.equal(logits(empty, ids), parent.model.lm_head(inner.norm(embed(parent.model, ids))))
    layer = child_of(parent, "kv4+ffn48 skip+ffn48 kv4+skip kv4+ffn48 kv4+ffn48 kv4+ffn48").model.layers
    entering = torch.randn(2, 5, 32)
    tables = rotary(parent.model, entering)
    with torch.no_grad():
        own = parent.model.model.layers
        assert torch.equal(delta(layer[1], entering, tables), own[1].fed_forward(entering))
        expected = own[2].attended(entering, position_embeddings=tables, attention_mask=None, cache=None)
        assert torch.equal(delta(layer[2], entering, tables), expected)


@pytest.mark.parametrize("family", UNFUSED)
def test_blocks_in_parallel_add_up_what_each_makes_of_one_input(family: str) -> None:
    parent = random_parent(family)
    child, ids = child_of(parent, "kv4+ffn48 kv4+ffn48|kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48"), random_ids(parent)
    with torch.no_grad():
        entering = parent.model(ids, output_hidden_states=True).hidden_states[1]
        tables = rotary(parent.model, entering)
        added = sum(delta(parent.model.model.layers[layer], entering, tables) for layer in (1, 2))
        found = child(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found[3], entering + added)


@pytest.mark.parametrize("family", UNFUSED)
@pytest.mark.parametrize("kind", ["fuse", "fuse_last"])
def test_ffns_are_not_fused_through_their_norms(kind: str, family: str) -> None:
    with pytest.raises(SubblockError, match="a norm behind it, so that no FFN is the sum of several; give space"):
        check(Choice.parse(f"L1.ffn={kind}(ffn48,ffn48)"), random_parent(family).shape)


def test_the_norm_over_all_keys_is_pooled_as_they_are() -> None:
    parent, choice = random_parent("olmo2"), Choice.parse("L1.attention=kv2")
    (built,) = build(parent, [choice], cached(parent.model, random_ids(parent, sequences=8), 4), batch=4, fit=False)
    own = parent.layer_weights(1)["self_attn.k_norm.weight"].view(2, 2, 4)
    torch.testing.assert_close(built.first["self_attn.k_norm.weight"], own.mean(1).flatten())


@pytest.mark.parametrize("family", UNFUSED)
@pytest.mark.parametrize("text", ["L1.attention=linear", "L1.ffn=ffn16"])
def test_no_projection_is_fitted_through_a_norm(text: str, family: str) -> None:
    parent = random_parent(family)
    (built,) = build(
        parent, [Choice.parse(text)], cached(parent.model, random_ids(parent, sequences=8), 4), batch=4, fit=True
    )
    assert all(torch.equal(built.fitted[name], tensor) for name, tensor in built.first.items())


TEXTS = ["L0.attention=kv1", "L1.attention=linear", "L2.ffn=ffn16", "L3.ffn=linear", "L4.block=skip+skip",
         "L1.ffn=moe4x12k2", "L5.attention=window4"]  # fmt: skip


@pytest.mark.parametrize("family", UNFUSED)
def test_a_score_is_the_distance_of_the_assembled_child(family: str) -> None:
    parent = random_parent(family)
    ids = random_ids(parent, sequences=3, tokens=14)
    architectures = {text: parent.architecture.with_(Choice.parse(text)) for text in TEXTS}
    weights = {text: first_weights_of(parent, architecture) for text, architecture in architectures.items()}
    held = {Choice.parse(text): weights[text].get(Choice.parse(text), {}) for text in TEXTS}
    *_, found = score(parent, held, ComputedActivations(parent.model, ids))
    assert isinstance(found, dict)
    for text, architecture in architectures.items():
        child = assemble(parent, architecture, lambda choice, own=weights[text]: own.get(choice, {}))  # type: ignore[misc]
        assert found[Choice.parse(text)].kl == pytest.approx(evaluate(parent.model, child, ids).kl, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("family", UNFUSED)
def test_a_norm_belongs_to_what_it_stands_behind(family: str) -> None:
    child = child_of(random_parent(family), "skip+ffn48 kv4+skip kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48")
    norms = [{name for name, _ in layer.named_children() if "norm" in name} for layer in child.model.layers]
    attention, ffn = {"input_layernorm"}, {"post_attention_layernorm"}
    if family == "gemma3_text":
        attention, ffn = attention | {"attention_output_norm"}, ffn | {"mlp_output_norm"}
    assert norms[:3] == [ffn, attention, attention | ffn]
