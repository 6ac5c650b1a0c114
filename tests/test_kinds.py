"""First weights of every kind do what their papers say, on layers of real transformers models."""

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parents import FAMILIES, GPT, random_parent
from torch import Tensor

from blocklib.block import Choice, Subblock
from blocklib.ffn.fuse import fuse_weights
from blocklib.importance import channel_sizes, contribution
from blocklib.kind import ParentLayer
from blocklib.kinds import check, first_weights
from blocklib.parent import Parent
from blocklib.stream import delta, inputs_of, rotary, slot_delta, variant

WIDTH = 48


@pytest.fixture(scope="module")
def double() -> Parent:
    """Biases in every projection, a distinct norm in every layer, float64."""
    return random_parent("llama", dtype=torch.float64)


def residual(parent: Parent, batch: int = 2, tokens: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    dtype = parent.model.dtype
    return 2 * torch.randn(batch, tokens, parent.shape.hidden, generator=generator, dtype=torch.float64).to(dtype)


def layers_of(parent: Parent, choice: Choice, contribution_F: Tensor | None = None) -> list[ParentLayer]:
    contribution_F = torch.arange(parent.shape.ffn_width).float() if contribution_F is None else contribution_F
    spanned = range(choice.layer, choice.end_layer)
    return [ParentLayer(parent.layer_weights(layer), contribution_F, torch.empty(0)) for layer in spanned]


@torch.no_grad()
def output(parent: Parent, choice: Choice, weights: Mapping[str, Tensor], entering_BTD: Tensor) -> Tensor:
    return delta(variant(parent.model, choice, weights), entering_BTD, rotary(parent.model, entering_BTD))


@torch.no_grad()
def parents_own(parent: Parent, slot: int, entering_BTD: Tensor) -> Tensor:
    return slot_delta(parent.model, slot, entering_BTD, rotary(parent.model, entering_BTD))


# --- FFN ------------------------------------------------------------------------------------------------------------


@given(dropped=st.integers(0, WIDTH - 1))
@settings(max_examples=10)
def test_what_a_channel_contributes_is_what_is_lost_without_it(double: Parent, dropped: int) -> None:
    """||Y - Y_without_i|| = |x_i| ||W_down[:, i]|| for every token."""
    entering = residual(double)
    layer = double.model.model.layers[1]
    choice = Choice.parse(f"L1.ffn=ffn{WIDTH - 1}")
    contribution = torch.ones(WIDTH)
    contribution[dropped] = 0
    weights = first_weights(choice, layers_of(double, choice, contribution), double.shape)
    with inputs_of(layer.mlp.down_proj) as hidden:
        whole = parents_own(double, 3, entering)
    lost = (whole - output(double, choice, weights, entering)).norm(dim=-1)
    torch.testing.assert_close(lost, hidden[0][..., dropped].abs() * layer.mlp.down_proj.weight[:, dropped].norm())


def test_the_meter_reads_that_contribution(double: Parent) -> None:
    entering = residual(double, batch=4)
    layer = double.model.model.layers[2]
    sizes = []
    lost = torch.zeros(WIDTH, dtype=torch.float64)
    for part in entering.split(2):
        with inputs_of(layer.mlp.down_proj) as hidden:
            parents_own(double, 5, part)
        sizes.append(channel_sizes(hidden[0]))
        each_F = hidden[0].flatten(0, 1)[:, None, :] * layer.mlp.down_proj.weight  # [tokens, D, F]: what each adds
        lost += each_F.norm(dim=1).sum(0)
    tokens = entering[..., 0].numel()
    found = contribution(torch.cat(sizes), tokens, layer.mlp.down_proj.weight)
    torch.testing.assert_close(found.double(), lost / tokens, rtol=1e-5, atol=1e-7)


def test_the_channels_kept_are_the_largest_in_the_parents_order(double: Parent) -> None:
    choice = Choice.parse("L0.ffn=ffn3")
    contribution = torch.zeros(WIDTH)
    contribution[[30, 4, 17]] = torch.tensor([3.0, 1.0, 2.0])
    found = first_weights(choice, layers_of(double, choice, contribution), double.shape)
    own = double.layer_weights(0)
    assert torch.equal(found["mlp.gate_proj.weight"], own["mlp.gate_proj.weight"][[4, 17, 30]])
    assert torch.equal(found["mlp.up_proj.bias"], own["mlp.up_proj.bias"][[4, 17, 30]])
    assert torch.equal(found["mlp.down_proj.weight"], own["mlp.down_proj.weight"][:, [4, 17, 30]])
    assert torch.equal(found["mlp.down_proj.bias"], own["mlp.down_proj.bias"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_linear_ffn_is_down_times_up(family: str) -> None:
    """Through the norm, the gate ignored, biases included."""
    parent = random_parent(family)
    own, choice = parent.layer_weights(2), Choice.parse("L2.ffn=linear")
    found = first_weights(choice, layers_of(parent, choice), parent.shape)
    layer = parent.model.model.layers[2]
    normed = layer.ffn_input(residual(parent))
    up = torch.nn.functional.linear(normed, own["mlp.up_proj.weight"], own.get("mlp.up_proj.bias"))
    expected = torch.nn.functional.linear(up, own["mlp.down_proj.weight"], own.get("mlp.down_proj.bias"))
    behind = layer.mlp_output_norm if family == "gemma3_text" else layer.post_attention_layernorm
    expected = behind(expected) if parent.shape.norms_output else expected
    expected = expected * parent.config.residual_multiplier
    torch.testing.assert_close(output(parent, choice, found, residual(parent)), expected, rtol=1e-4, atol=1e-4)


# --- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [1, 2])
def test_pooling_equal_heads_loses_nothing(family: str, kept: int) -> None:
    parent = random_parent(family)
    attention = parent.model.model.layers[1].self_attn
    normed = (attention.k_norm,) if parent.shape.joint_qk_norm else ()
    for projection in (attention.k_proj, attention.v_proj, *normed):
        for tensor in projection.parameters():
            heads = tensor.data.view(kept, parent.shape.kv_heads // kept, -1)
            heads.copy_(heads[:, :1].clone().expand_as(heads))
    choice = Choice.parse(f"L1.attention=kv{kept}")
    weights = first_weights(choice, layers_of(parent, choice), parent.shape)
    entering = residual(parent)
    torch.testing.assert_close(output(parent, choice, weights, entering), parents_own(parent, 2, entering))


def test_pooling_is_the_mean_of_adjacent_heads() -> None:
    parent = random_parent("qwen2")
    choice, size = Choice.parse("L0.attention=kv2"), parent.shape.head_dim
    found = first_weights(choice, layers_of(parent, choice), parent.shape)
    own = parent.layer_weights(0)
    for name in ("self_attn.k_proj.weight", "self_attn.v_proj.bias"):
        for head in range(2):
            first, second = own[name][2 * head * size :][:size], own[name][(2 * head + 1) * size :][:size]
            torch.testing.assert_close(found[name][head * size :][:size], (first + second) / 2)
    assert torch.equal(found["self_attn.q_proj.weight"], own["self_attn.q_proj.weight"])


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_attention_is_attention_to_oneself(family: str) -> None:
    """On a sequence of one token, attention is a linear map: W_o expand(W_v), biases included."""
    parent = random_parent(family)
    assert parent.shape.kv_heads < parent.shape.heads or family in GPT
    choice = Choice.parse("L3.attention=linear")
    weights = first_weights(choice, layers_of(parent, choice), parent.shape)
    assert ("self_attn.linear_attn.bias" in weights) == (
        family in ("llama", "qwen2", "granite", "olmo2", "gemma3_text", *GPT)
    )
    entering = residual(parent, batch=5, tokens=1)
    expected = parents_own(parent, 6, entering)
    torch.testing.assert_close(output(parent, choice, weights, entering), expected, rtol=1e-4, atol=1e-4)


# --- fused runs -----------------------------------------------------------------------------------------------------

RUNS = ["ffn48,ffn48", "ffn48,ffn7,ffn24", "ffn1,ffn48,ffn16,ffn30"]


def members_of(parent: Parent, run: Choice) -> list[tuple[Choice, dict[str, Tensor]]]:
    assert isinstance(run.what, Subblock)
    alone = [Choice(run.layer + index, "ffn", part) for index, part in enumerate(run.what.parts)]
    return [(choice, first_weights(choice, layers_of(parent, choice), parent.shape)) for choice in alone]


@pytest.mark.parametrize("family", ["llama", "granite"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["fuse", "fuse_last"])
@pytest.mark.parametrize("parts", RUNS)
def test_a_fused_run_is_the_sum_of_its_ffns(kind: str, parts: str, bias: bool, family: str) -> None:
    """On the shared input, to 1e-10. `fuse_last` by definition reads every member through the last one's norm."""
    parent = random_parent(family, dtype=torch.float64, mlp_bias=bias)
    run = Choice.parse(f"L1.ffn={kind}({parts})")
    members = members_of(parent, run)
    norm = "post_attention_layernorm.weight"
    if kind == "fuse_last":
        last = members[-1][1][norm]
        members = [(choice, weights | {norm: last}) for choice, weights in members]
    entering = residual(parent)
    expected = torch.stack([output(parent, choice, weights, entering) for choice, weights in members]).sum(0)
    fused = first_weights(run, layers_of(parent, run), parent.shape)
    torch.testing.assert_close(output(parent, run, fused, entering), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("parts", RUNS)
def test_norms_left_unfolded_are_noticed(double: Parent, parts: str) -> None:
    """The check above can fail: the members' norms differ, so a copy that forgets them is far off."""
    run = Choice.parse(f"L1.ffn=fuse({parts})")
    members, entering = members_of(double, run), residual(double)
    expected = torch.stack([output(double, choice, weights, entering) for choice, weights in members]).sum(0)
    naive = fuse_weights([weights for _, weights in members], fold_norms=False)
    assert (output(double, run, naive, entering) - expected).abs().max() > 0.1


def test_the_order_of_members_does_not_matter(double: Parent) -> None:
    run = Choice.parse("L1.ffn=fuse(ffn48,ffn7,ffn24)")
    members, entering = [weights for _, weights in members_of(double, run)], residual(double)
    outputs = [output(double, run, fuse_weights(order, True), entering) for order in permutations(members)]
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=0, atol=1e-10)


def test_a_run_of_one_is_its_member(double: Parent) -> None:
    choice = Choice.parse("L2.ffn=ffn20")
    weights = first_weights(choice, layers_of(double, choice), double.shape)
    entering = residual(double)
    folded = output(double, choice, fuse_weights([weights], fold_norms=True), entering)
    torch.testing.assert_close(folded, output(double, choice, weights, entering), rtol=0, atol=1e-10)
    unfolded = fuse_weights([weights], fold_norms=False)
    assert unfolded.keys() == weights.keys()
    assert all(torch.equal(unfolded[name], weights[name]) for name in weights)


def test_bfloat16_runs_stay_bfloat16() -> None:
    parent = random_parent(dtype=torch.bfloat16)
    run = Choice.parse("L1.ffn=fuse(ffn48,ffn48)")
    fused = first_weights(run, layers_of(parent, run), parent.shape)
    assert {tensor.dtype for tensor in fused.values()} == {torch.bfloat16}


# --- what a parent cannot hold --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("L0.attention=kv3", "kv3: 3 KV heads do not divide the parent's 4; use kv1, kv2, kv4"),
        ("L0.attention=kv0", "use kv1, kv2, kv4"),
        ("L0.attention=kv8", "use kv1, kv2, kv4"),
        ("L0.attention=kv", "kv has no single number"),
        ("L0.attention=ffn8", "ffn8: there is no kind 'ffn' of attention; kinds: kv, window, linear, skip"),
        ("L0.attention=linear2", "linear attention takes no number"),
        ("L0.attention=skip1", "skip takes no number"),
        ("L0.ffn=kv4", "kv4: there is no kind 'kv' of ffn; kinds: ffn, linear, skip, dip"),
        ("L0.ffn=ffn0", "the parent's FFN is 48 wide; use ffn1 to ffn48"),
        ("L0.ffn=ffn49", "the parent's FFN is 48 wide; use ffn1 to ffn48"),
        ("L0.ffn=linear7", "a linear FFN takes no number"),
        ("L0.ffn=fuse(ffn48)", "at least two members"),
        ("L0.ffn=fuse(ffn48,linear)", "only dense FFNs can be fused, and linear is not dense"),
        ("L0.ffn=fuse_last(ffn48,ffn49)", "use ffn1 to ffn48"),
        ("L5.ffn=fuse(ffn48,ffn48)", "L5.ffn=fuse(ffn48,ffn48) reaches past the parent's last layer, 5"),
        ("L6.attention=kv4", "reaches past the parent's last layer, 5"),
        ("L2.block=kv3+skip", "kv3: 3 KV heads do not divide"),
    ],
)
def test_what_a_parent_cannot_hold_is_said(double: Parent, spelling: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check(Choice.parse(spelling), double.shape)


@pytest.mark.parametrize(
    "spelling", ["L5.attention=kv1", "L5.ffn=ffn1", "L4.ffn=fuse(ffn48,ffn1)", "L0.block=linear+linear", "L0.ffn=skip"]
)
def test_what_a_parent_can_hold(double: Parent, spelling: str) -> None:
    check(Choice.parse(spelling), double.shape)
    with pytest.raises(ValueError, match="reaches past"):
        check(Choice.parse(spelling), replace(double.shape, layers=0))
