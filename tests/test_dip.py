"""Dynamic input pruning: the formula, its densities, and that what is not kept is not read."""

import pytest
import torch
from parents import random_ids, random_parent
from torch import Tensor

from blocklib.activations import cached
from blocklib.block import Choice, Subblock
from blocklib.ffn.dip import PrunedFFN, densities, kept_channels, tokens_apart
from blocklib.initial_weights import build
from blocklib.kinds import FFN, choice_touched
from blocklib.parent import Parent
from blocklib.stream import variant

FAMILIES = ("llama", "qwen3", "gpt2")


def ffn(parent: Parent, spelling: str, layer: int = 2) -> PrunedFFN:
    choice = Choice(layer, "ffn", Subblock.parse(spelling))
    (built,) = build(parent, [choice], cached(parent.model, random_ids(parent, 8, 16), 4), batch=4, fit=False)
    module = variant(parent.model, choice, built.first).get_submodule("mlp")
    assert isinstance(module, PrunedFFN)
    return module


def inputs(parent: Parent, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*shape, parent.shape.hidden, generator=generator).to(parent.model.dtype)


def by_the_formula(parent: Parent, layer: int, x: Tensor, keep: int) -> Tensor:
    """One token at a time, from the parent's own matrices: y = W_d (h 1[J]), h from x 1[I]."""
    mlp = parent.model.model.layers[layer].mlp
    shape = parent.shape
    k_in, k_mid = kept_channels(keep, shape.gated, shape.hidden, shape.ffn_width)
    rows = []
    for token in x.flatten(0, -2):
        kept = torch.zeros_like(token)
        for i in sorted(range(len(token)), key=lambda i: -abs(float(token[i])))[:k_in]:
            kept[i] = token[i]
        hidden = mlp.act_fn(mlp.gate_proj(kept)) * mlp.up_proj(kept) if shape.gated else mlp.act_fn(mlp.up_proj(kept))
        left = torch.zeros_like(hidden)
        for j in sorted(range(len(hidden)), key=lambda j: -abs(float(hidden[j])))[:k_mid]:
            left[j] = hidden[j]
        rows.append(mlp.down_proj(left))
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize(
    ("keep", "inputs_kept", "hidden_kept"),
    [
        (0.25, 0.314, 0.122), (0.4, 0.475, 0.250), (0.5, 0.574, 0.351),
        (0.6, 0.668, 0.464), (0.75, 0.799, 0.651), (0.9, 0.922, 0.857),
    ],
)  # fmt: skip
def test_the_fitted_split(keep: float, inputs_kept: float, hidden_kept: float) -> None:
    assert densities(keep, gated=True) == (pytest.approx(inputs_kept, abs=1e-3), pytest.approx(hidden_kept, abs=1e-3))
    found = densities(keep, gated=True)
    assert (2 * found[0] + found[1]) / 3 == pytest.approx(keep)
    assert sum(densities(keep, gated=False)) / 2 == pytest.approx(keep)
    assert densities(1.0, gated=True) == (1.0, 1.0)


@torch.no_grad()
@pytest.mark.parametrize("keep", [25, 50, 75, 100])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_formula_for_many_tokens_and_for_one(family: str, keep: int) -> None:
    parent = random_parent(family, dtype=torch.float64)
    module, x = ffn(parent, f"dip{keep}"), inputs(parent, 3, 5)
    expected = by_the_formula(parent, 2, x, keep)
    torch.testing.assert_close(module(x), expected)
    for token in range(5):
        torch.testing.assert_close(module(x[:1, token : token + 1]), expected[:1, token : token + 1])
    for tokens in range(2, 6):
        torch.testing.assert_close(module(x[:1, :tokens]), expected[:1, :tokens])
    if keep == 100:
        torch.testing.assert_close(expected, parent.model.model.layers[2].mlp(x))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_the_formula_within_its_precision(family: str) -> None:
    """Near-ties may be broken otherwise, so what is compared is the whole output, by its norm."""
    exact = random_parent(family, dtype=torch.float64)
    x = inputs(exact, 1, 8).bfloat16()
    module, expected = ffn(exact, "dip50").bfloat16(), by_the_formula(exact, 2, x.double(), 50)
    for found in (module(x), torch.cat([module(x[:, token : token + 1]) for token in range(8)], 1)):
        assert found.dtype == torch.bfloat16
        assert float((found - expected).norm() / expected.norm()) < 0.03


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spelling", ["dip40", "dip_threshold40"])
@pytest.mark.parametrize("compiled", [True, False])
def test_one_token_never_reads_what_it_does_not_keep(
    spelling: str, dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr("blocklib.ffn.rows.native_operation", lambda: None)
    parent = random_parent(dtype=dtype)
    module, x = ffn(parent, spelling), inputs(parent, 1, 1)
    before = module(x)
    kept = module.chosen(x.flatten(), module.kept_inputs, "input_threshold")
    hidden = module.activated(module.in_proj.picked(kept, x.flatten()[kept]))
    left = module.chosen(hidden, module.kept_hidden, "hidden_threshold")
    for projection, read in ((module.in_proj, kept), (module.down_proj, left)):
        poisoned = torch.full_like(projection.weight, torch.nan)
        poisoned[read] = projection.weight[read]
        projection.weight = torch.nn.Parameter(poisoned, requires_grad=False)
    assert 0 < len(kept) < len(x.flatten())
    assert 0 < len(left) < len(hidden)
    assert torch.equal(module(x), before)
    assert module(x.expand(1, 3, -1)).isnan().any()  # Three of them are multiplied densely.


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("spelling", ["dip50", "dip_threshold50"])
def test_a_value_that_is_not_a_number_is_never_pruned_away(spelling: str, tokens: int) -> None:
    parent = random_parent()
    module, x = ffn(parent, spelling), inputs(parent, 1, tokens)
    x[0, 0, 3] = torch.nan
    assert module(x)[0, 0].isnan().all()
    assert not module(x)[0, 1:].isnan().any()


@torch.no_grad()
def test_no_slice_is_copied() -> None:
    """Whichever way the rows are summed, none is gathered first."""
    parent = random_parent()
    module, x = ffn(parent, "dip50"), inputs(parent, 1, 1)
    with torch.profiler.profile(record_shapes=True) as profile:
        module(x)
    weights = [tuple(projection.weight.shape) for projection in (module.in_proj, module.down_proj)]
    gathers = ("aten::index", "aten::index_select", "aten::gather")
    for event in profile.events():
        read = {tuple(shape) for shape in event.input_shapes}
        assert not (event.name in gathers and read & set(weights)), event


def test_gradients_flow_through_what_is_kept_alone() -> None:
    parent = random_parent()
    module, x = ffn(parent, "dip50"), inputs(parent, 1, 1)
    module.train().requires_grad_(True)
    module(x).sum().backward()
    gradient = module.in_proj.weight.grad
    assert gradient is not None
    kept = module.chosen(x.flatten(), module.kept_inputs, "input_threshold")
    dead = torch.ones(len(gradient), dtype=torch.bool)
    dead[kept] = False
    assert not gradient[dead].any()
    assert gradient[kept].any(dim=1).all()


@torch.no_grad()
def test_thresholds_keep_as_much_on_the_text_they_were_taken_from() -> None:
    parent = random_parent()
    shape = parent.shape
    (built,) = build(
        parent,
        [Choice.parse("L2.ffn=dip_threshold50")],
        cached(parent.model, random_ids(parent, 64, 16), 8),
        batch=8,
        fit=False,
    )
    module = variant(parent.model, built.choice, built.first).get_submodule("mlp")
    assert isinstance(module, PrunedFFN)
    seen = _ffn_inputs(parent, 2)
    mask = module.mask(seen, 0, "input_threshold")
    hidden = module.activated(module.in_proj(seen.masked_fill(~mask, 0)))
    kept = kept_channels(50, True, shape.hidden, shape.ffn_width)
    assert float(mask.float().sum(-1).mean()) == pytest.approx(kept[0], rel=1e-3)
    assert float(module.mask(hidden, 0, "hidden_threshold").float().sum(-1).mean()) == pytest.approx(kept[1], rel=1e-3)


def _ffn_inputs(parent: Parent, layer: int) -> Tensor:
    seen: list[Tensor] = []
    hook = parent.model.model.layers[layer].mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    parent.model(random_ids(parent, 64, 16))
    hook.remove()
    return seen[0]


def test_what_one_token_reads_by_hand() -> None:
    shape = random_parent("llama").shape
    inputs_kept, hidden_kept = kept_channels(50, True, shape.hidden, shape.ffn_width)
    assert (inputs_kept, hidden_kept) == (18, 16)
    choice = Choice.parse("L0.ffn=dip50")
    biases_and_norm = 2 * shape.ffn_width + shape.hidden + shape.hidden
    by_hand = inputs_kept * 2 * shape.ffn_width + hidden_kept * shape.hidden + biases_and_norm
    assert choice_touched(choice, shape, 1) == by_hand
    # Two tokens that choose by themselves leave out of 32 inputs (14/32)**2, and of 48 neurons (32/48)**2.
    union = 32 * (1 - (14 / 32) ** 2) * 2 * shape.ffn_width + 48 * (1 - (32 / 48) ** 2) * shape.hidden
    assert choice_touched(choice, shape, 2) == pytest.approx(union + biases_and_norm)
    assert choice_touched(choice, shape, 3) == 3 * shape.hidden * shape.ffn_width + biases_and_norm


def test_few_tokens_are_taken_one_by_one_while_they_read_no_more_than_a_dense_pass() -> None:
    found = {percent: tokens_apart(percent) for percent in (1, 10, 12, 25, 33, 50, 51, 100)}
    assert found == {1: 8, 10: 8, 12: 8, 25: 4, 33: 3, 50: 2, 51: 1, 100: 1}


def test_what_cannot_be_kept_is_said() -> None:
    shape = random_parent().shape
    for spelling, message in (("dip0", "use dip1 to 100"), ("dip101", "percentage"), ("dip1", "keeps none of")):
        with pytest.raises(ValueError, match=message):
            FFN["dip"].check(Subblock.parse(spelling), shape)
