"""Mixtures of experts: the parent parted, its experts chosen, and only those read."""

import math

import pytest
import torch
from conftest import SHARED
from parents import random_ids, random_parent
from torch import Tensor
from torch.nn import functional

from blocklib.activations import cached
from blocklib.block import Choice, Subblock
from blocklib.ffn.clusters import balanced_clusters
from blocklib.ffn.dense import hidden_values
from blocklib.ffn.moe import MixtureOfExperts, fit_router, negative_entropy
from blocklib.initial_weights import build
from blocklib.kinds import FFN, choice_touched
from blocklib.parent import Parent, load_parent
from blocklib.stream import inputs_of, variant

FAMILIES = ("llama", "gpt2")


def ffn(parent: Parent, spelling: str, layer: int = 2) -> MixtureOfExperts:
    choice = Choice(layer, "ffn", Subblock.parse(spelling))
    (built,) = build(parent, [choice], cached(parent.model, random_ids(parent, 16, 16), 4), batch=4, fit=False)
    module = variant(parent.model, choice, {name: tensor.clone() for name, tensor in built.first.items()})
    found = module.get_submodule("mlp")
    assert isinstance(found, MixtureOfExperts)
    return found


def inputs(parent: Parent, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(tokens, parent.shape.hidden, generator=generator).to(parent.model.dtype)


def by_the_formula(module: MixtureOfExperts, x: Tensor) -> Tensor:
    """Every expert of every token, those not chosen at weight 0."""
    chosen = (x @ module.router.weight.T).topk(module.active).indices
    scores = (x @ module.router.weight.T).sigmoid()
    weight = torch.zeros(len(x), module.experts, dtype=x.dtype)
    weight[:, : module.shared] = 1
    for row, score in enumerate(scores):
        for expert in chosen[row].tolist():
            gate = score[expert] if module.sigma else 1 + module.gate_scale[expert] * score[expert]
            weight[row, module.shared + expert] = gate
    total = torch.zeros_like(x)
    for expert in range(module.experts):
        up = x @ module.up_proj[expert].T + (module.up_bias[expert] if module.has_bias else 0)
        if module.gated:
            gate = x @ module.gate_proj[expert].T + (module.gate_bias[expert] if module.has_bias else 0)
            hidden = module.act_fn(gate) * up
        else:
            hidden = module.act_fn(up)
        total += weight[:, expert, None] * (hidden @ module.down_proj[expert].T)
    return total + (module.down_bias if module.has_bias else 0)


@torch.no_grad()
@pytest.mark.parametrize("spelling", ["moe4x12k4", "moe4x12k2s2", "moe5x10k5", "moe48x1k48", "moe1x48k1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_experts_are_the_parent(family: str, spelling: str) -> None:
    """Neurons are parted, none is lost or doubled; where widths do not divide, zeros fill up."""
    parent = random_parent(family)
    module, x = ffn(parent, spelling), inputs(parent, 7)
    expected = parent.model.model.layers[2].mlp(x)
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module(x[:1]), expected[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spelling", ["moe4x12k2", "moe4x12k1s2", "moe6x8k3", "sigma_moe4x12k2", "moe7x7k2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_path_is_the_formula_gradients_included(family: str, spelling: str) -> None:
    """7 neurons wide is not what grouped_mm takes: another path."""
    parent = random_parent(family)
    module, x = ffn(parent, spelling), inputs(parent, 9)
    with torch.no_grad():
        if not module.sigma:
            module.gate_scale.uniform_(-1, 1)
        expected = by_the_formula(module, x)
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)
        for token in range(3):
            torch.testing.assert_close(module(x[token]), expected[token], rtol=1e-4, atol=1e-4)
    module.requires_grad_(True)
    weights = [parameter for parameter in module.parameters() if parameter.numel()]
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((module(x) * target).sum(), weights)
    wanted = torch.autograd.grad((by_the_formula(module, x) * target).sum(), weights)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("spelling", ["moe8x6k1", "moe6x8k1s1"])
def test_what_is_not_chosen_is_not_read(spelling: str, tokens: int) -> None:
    module, x = ffn(random_parent(), spelling), inputs(random_parent(), tokens)
    before = module(x)
    used = set(range(module.shared)) | set((module.route(x)[0] + module.shared).flatten().tolist())
    assert len(used) < module.experts
    for name in ("gate_proj", "up_proj", "down_proj"):
        for expert in set(range(module.experts)) - used:
            getattr(module, name)[expert] = torch.nan
    assert torch.equal(module(x), before)


def test_the_regulariser_is_least_where_all_are_used_alike() -> None:
    even, uneven = torch.zeros(50, 8), torch.zeros(50, 8)
    uneven[:, 3] = 50.0
    assert float(negative_entropy(even)) == pytest.approx(-math.log(8))
    assert float(negative_entropy(uneven)) == pytest.approx(0, abs=1e-6)
    spread = torch.eye(8).repeat(10, 1) * 30  # Each token sure, all experts used alike.
    assert float(negative_entropy(spread)) == pytest.approx(-math.log(8), abs=1e-5)
    random = float(negative_entropy(torch.randn(50, 8)))
    assert -math.log(8) <= random <= 0


def test_dropped_experts_never_make_nan_and_are_none_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blocklib.ffn.moe.EXPERT_DROPOUT", 0.9)
    module, x = ffn(random_parent(), "moe4x12k3"), inputs(random_parent(), 64)
    module.train()
    assert torch.isfinite(module(x)).all()
    assert module.regulariser is not None
    first, second = module.route(x)[0], module.route(x)[0]
    assert not torch.equal(first, second)
    module.eval()
    assert torch.equal(module.route(x)[0], module.route(x)[0])
    assert module.regulariser is None


def test_counts_by_hand() -> None:
    shape = random_parent("llama").shape
    expert, norm = 6 * (3 * shape.hidden + 2), shape.hidden
    choice = Choice.parse("L0.ffn=moe8x6k2s2")
    router = 6 * (shape.hidden + 1)
    for tokens in (1, 5):
        experts = 2 + 6 * (1 - (1 - 2 / 6) ** tokens)
        by_hand = router + experts * expert + shape.hidden + norm
        assert choice_touched(choice, shape, tokens) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("moe4", "write the experts, their width and how many are used, as in moe16x3k4"),
        ("moe4x11k2", r"4 experts of width 11 do not hold the parent's 48 neurons; give each 12"),
        ("moe4x12k5", r"a token cannot use 5 \+ 0 of 4 experts"),
        ("moe4x12k3s2", r"a token cannot use 3 \+ 2 of 4 experts"),
        ("moe4x12k0", r"0 \+ 0 of 4"),
    ],
)
def test_what_cannot_be_is_said(spelling: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FFN["moe"].check(Subblock.parse(spelling), random_parent().shape)


def test_a_short_spelling_shares_out_the_width() -> None:
    shape = random_parent().shape
    for short, full in (("moe16k4", "moe16x3k4"), ("moe5k2s1", "moe5x10k2s1"), ("moe4x12k2", "moe4x12k2")):
        assert str(FFN["moe"].sized(Subblock.parse(short), shape)) == full


def test_usage_counts_tokens() -> None:
    module, x = ffn(random_parent(), "moe6x8k2s1"), inputs(random_parent(), 40)
    counts = module.usage(x)
    assert counts.shape == (5,)
    assert int(counts.sum()) == 80


def test_clusters_are_of_one_size_and_find_what_fires_together() -> None:
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(24) % 4
    activity = torch.rand(200, 24, generator=generator) * 0.05
    for token, topic in enumerate(torch.randint(4, (200,), generator=generator).tolist()):
        activity[token, owner == topic] += 1
    order = balanced_clusters(activity, 4)
    assert sorted(order.tolist()) == list(range(24))
    assert all(len(set(group.tolist())) == 1 for group in owner[order].split(6))
    with pytest.raises(ValueError, match="24 neurons cannot form 5 clusters"):
        balanced_clusters(activity, 5)


# --- a real parent --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> tuple[Parent, Tensor]:
    """A trained FFN and what it reads, [tokens, D]: of stories3M, whose FFN is 512 wide."""
    folder = SHARED / "parents/stories3M"
    if not folder.is_dir():
        pytest.skip("stories3M does not lie beside the repository")
    from transformers import AutoTokenizer

    parent = load_parent(str(folder))
    text = (SHARED / "text/tinystories/heldout.txt").read_text(encoding="utf-8")[:60_000]
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(text, verbose=False)["input_ids"])
    ids = ids[: len(ids) // 256 * 256].view(-1, 256)
    with torch.no_grad(), inputs_of(parent.model.model.layers[3].mlp) as seen:
        parent.model(ids)
    return parent, seen[0].flatten(0, 1)


def oracle_error(parent: Parent, x: Tensor, order: Tensor, experts: int, active: int) -> float:
    """Relative squared error where each token uses the experts that do most for it."""
    weights = parent.layer_weights(3)
    hidden = hidden_values(weights, x, parent.shape)[:, order].unflatten(1, (experts, -1))
    down = weights["mlp.down_proj.weight"][:, order].unflatten(1, (experts, -1))
    done = (hidden.abs() * down.norm(dim=0)).sum(-1)
    kept = functional.one_hot(done.topk(active, dim=1).indices, experts).sum(1)
    return _missing(hidden, down, kept)


def _missing(hidden: Tensor, down: Tensor, kept: Tensor) -> float:
    whole = torch.einsum("neg,deg->nd", hidden, down)
    part = torch.einsum("neg,deg->nd", hidden * kept[..., None], down)
    return float((whole - part).square().mean() / whole.square().mean())


@torch.no_grad()
def test_clusters_beat_random_groups(real: tuple[Parent, Tensor]) -> None:
    parent, x = real
    fitting, checking = x[: len(x) // 2], x[len(x) // 2 :]
    weights = parent.layer_weights(3)
    activity = hidden_values(weights, fitting, parent.shape).abs() * weights["mlp.down_proj.weight"].norm(dim=0)
    order = balanced_clusters(activity, 16)
    for active in (4, 8):
        shuffled = [torch.randperm(512, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
        random = [oracle_error(parent, checking, other, 16, active) for other in shuffled]
        assert oracle_error(parent, checking, order, 16, active) < min(random)


@torch.no_grad()
def test_a_fitted_router_beats_the_mean_key(real: tuple[Parent, Tensor]) -> None:
    """Avg-K routes by the mean of an expert's key rows (arXiv 2305.13999)."""
    parent, x = real
    fitting, checking = x[: len(x) // 2], x[len(x) // 2 :]
    weights = parent.layer_weights(3)
    hidden = hidden_values(weights, x, parent.shape)
    activity = hidden.abs() * weights["mlp.down_proj.weight"].norm(dim=0)
    order = balanced_clusters(activity[: len(fitting)], 16)
    done = activity[:, order].unflatten(1, (16, -1)).sum(-1)
    fitted = fit_router(fitting, done[: len(fitting)], 4)
    mean_keys = weights["mlp.gate_proj.weight"][order].unflatten(0, (16, -1)).mean(1)
    hidden = hidden[len(fitting) :, order].unflatten(1, (16, -1))
    down = weights["mlp.down_proj.weight"][:, order].unflatten(1, (16, -1))
    errors = []
    for router in (fitted, mean_keys):
        kept = functional.one_hot((checking @ router.T).topk(4, dim=1).indices, 16).sum(1)
        errors.append(_missing(hidden, down, kept))
    assert errors[0] < errors[1]
