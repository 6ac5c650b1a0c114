"""Top-K hidden values and product-key memories: the formulas, brute force, and that what is not chosen is not read."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parents import random_ids, random_parent
from torch import Tensor, nn

from blocklib.activations import cached
from blocklib.block import Choice, Subblock
from blocklib.ffn.pkm import ProductKeyMemory, half_size, look_up
from blocklib.ffn.topk import TopKFFN
from blocklib.initial_weights import build
from blocklib.kinds import FFN, choice_touched
from blocklib.parent import Parent
from blocklib.stream import variant

FAMILIES = ("llama", "gpt2")


def ffn(parent: Parent, spelling: str) -> nn.Module:
    choice = Choice.parse(f"L2.ffn={spelling}")
    (built,) = build(parent, [choice], cached(parent.model, random_ids(parent, 16, 16), 4), batch=4, fit=False)
    weights = {name: tensor.clone() for name, tensor in built.first.items()}
    return variant(parent.model, choice, weights).get_submodule("mlp")


def inputs(parent: Parent, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(tokens, parent.shape.hidden, generator=generator).to(parent.model.dtype)


# --- top-K ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kept", [1, 16, 48])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_largest_hidden_values_alone(family: str, kept: int) -> None:
    parent = random_parent(family, dtype=torch.float64)
    module, x = ffn(parent, f"topk{kept}"), inputs(parent, 6)
    mlp = parent.model.model.layers[2].mlp
    hidden = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x) if parent.shape.gated else mlp.act_fn(mlp.up_proj(x))
    for row in hidden:
        row[row.abs().argsort(descending=True)[kept:]] = 0
    expected = mlp.down_proj(hidden)
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module(x[:1]), expected[:1])
    if kept == 48:
        torch.testing.assert_close(expected, mlp(x))


@torch.no_grad()
def test_one_token_reads_only_the_rows_it_keeps() -> None:
    parent = random_parent()
    module, x = ffn(parent, "topk16"), inputs(parent, 1)
    assert isinstance(module, TopKFFN)
    before = module(x)
    hidden = module.act_fn(module.gate_proj(x)) * module.up_proj(x)
    unread = hidden[0].abs().argsort(descending=True)[16:]
    module.down_proj.weight[unread] = torch.nan
    torch.testing.assert_close(module(x), before)


def test_what_topk_reads_by_hand() -> None:
    shape = random_parent("llama").shape
    rest = 2 * shape.hidden * 48 + (2 * 48 + shape.hidden) + shape.hidden
    assert choice_touched(Choice.parse("L0.ffn=topk16"), shape, 1) == rest + 16 * shape.hidden
    assert choice_touched(Choice.parse("L0.ffn=topk16"), shape, 2) == rest + 48 * shape.hidden
    for wrong in ("topk0", "topk49"):
        with pytest.raises(ValueError, match="use topk1 to topk48"):
            FFN["topk"].check(Subblock.parse(wrong), shape)


# --- product keys ---------------------------------------------------------------------------------------------------


@given(st.integers(2, 7), st.integers(1, 3), st.integers(0, 10_000), st.data())
@settings(max_examples=60)
def test_the_best_slots_are_those_of_all_slots(side: int, heads: int, seed: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, side))
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(5, heads, 2, 3, generator=generator, dtype=torch.float64)
    keys = torch.randn(heads, 2, side, 3, generator=generator, dtype=torch.float64)
    slots, weights = look_up(queries, keys, kept, softmax=False)
    for token in range(5):
        for head in range(heads):
            rows = keys[head, 0] @ queries[token, head, 0]
            columns = keys[head, 1] @ queries[token, head, 1]
            every = (rows[:, None] + columns[None, :]).flatten()
            best = every.topk(kept)
            assert set(slots[token, head].tolist()) == set(best.indices.tolist())
            torch.testing.assert_close(weights[token, head], best.values.relu())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pkm", "pkm_softmax"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_formula(family: str, kind: str) -> None:
    parent = random_parent(family, dtype=torch.float64)
    module, x = ffn(parent, f"{kind}5x2k3"), inputs(parent, 6)
    assert isinstance(module, ProductKeyMemory)
    expected = module.value_bias.repeat(6, 1)
    for token, row in enumerate(x):
        queries = (module.query_proj.weight @ row).view(2, 2, -1)
        for head in range(2):
            rows, columns = (module.keys[head, half] @ queries[head, half] for half in (0, 1))
            scores = {5 * i + j: float(rows[i] + columns[j]) for i in range(5) for j in range(5)}
            best = sorted(scores, key=lambda slot: -scores[slot])[:3]
            chosen = torch.tensor([scores[slot] for slot in best], dtype=torch.float64)
            weights = chosen.softmax(0) if kind == "pkm_softmax" else chosen.clamp(min=0)
            expected[token] += sum(weight * module.values[slot] for weight, slot in zip(weights, best, strict=True))
    torch.testing.assert_close(module(x), expected)


@torch.no_grad()
def test_values_nobody_chooses_are_not_read() -> None:
    parent = random_parent()
    module, x = ffn(parent, "pkm6x2k2"), inputs(parent, 2)
    assert isinstance(module, ProductKeyMemory)
    before = module(x)
    unread = module.usage(x) == 0
    assert 0 < int(unread.sum()) < 36
    module.values[unread] = torch.nan
    assert torch.equal(module(x), before)


def test_gradients_reach_the_chosen_values_alone() -> None:
    parent = random_parent()
    module, x = ffn(parent, "pkm6x2k2"), inputs(parent, 2)
    assert isinstance(module, ProductKeyMemory)
    module.requires_grad_(True)
    module(x).square().sum().backward()
    chosen = module.usage(x) > 0
    assert module.values.grad is not None
    assert module.keys.grad is not None
    assert not module.values.grad[~chosen].any()
    assert module.keys.grad.any()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters() if parameter.grad is not None)


def test_what_a_memory_reads_by_hand() -> None:
    shape = random_parent().shape
    half = half_size(shape.hidden)
    assert half == 4
    fixed = 4 * half * shape.hidden + 4 * half * 5 + shape.hidden + shape.hidden
    choice = Choice.parse("L0.ffn=pkm5x2k3")
    for tokens in (1, 4):
        rows = 25 * (1 - (1 - 3 / 25) ** (2 * tokens))
        assert choice_touched(choice, shape, tokens) == pytest.approx(fixed + rows * shape.hidden)


@pytest.mark.parametrize("spelling", ["pkm5", "pkm5x2", "pkm1x2k1", "pkm5x0k3", "pkm5x2k6", "pkm5x2k0", "pkm129x1k1"])
def test_what_is_no_memory_is_said(spelling: str) -> None:
    with pytest.raises(ValueError, match=r"write the side|use a side of 2 to 128, at least one head, and 1 to"):
        FFN["pkm"].check(Subblock.parse(spelling), random_parent().shape)
