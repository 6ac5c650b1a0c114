"""UltraFastBERT's trees, and what both kinds of trees are grown and fitted with."""

import math
from types import SimpleNamespace

import pytest
import torch
from parents import FAMILIES, random_parent
from torch import Tensor
from torch.nn import functional

from blocklib.block import Subblock
from blocklib.ffn.dense import hidden_values
from blocklib.ffn.fff import Fast
from blocklib.ffn.tree import median_trees, principal_direction, ridge
from blocklib.ffn.ultra import Ultra, UltraFastFeedforward, path_features
from blocklib.kind import Kind, ParentLayer

HIDDEN = 32


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def network(trees: int, depth: int) -> UltraFastFeedforward:
    """With random weights, in inference."""
    torch.manual_seed(0)
    config = SimpleNamespace(hidden_size=HIDDEN, ffn_options={"trees": trees, "depth": depth})
    return UltraFastFeedforward(config).eval()


def path_of(module: UltraFastFeedforward, token_D: Tensor, tree: int) -> list[int]:
    """The rows of one token's path down one tree, by the papers' rule: right where the input is above 0."""
    path, place = [], 0
    for _ in range(module.depth + 1):
        row = tree * module.neurons + place
        path.append(row)
        place = 2 * place + 1 + int(module.in_weight[row] @ token_D + module.in_bias[row] > 0)
    return path


# --- what runs ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("trees", "depth"), [(1, 5), (4, 3), (3, 1)])
def test_the_output_is_the_sum_along_the_paths_whichever_way_it_is_computed(trees: int, depth: int) -> None:
    module, input_ND = network(trees, depth), tokens(40)
    expected = torch.zeros_like(input_ND)
    for index, token_D in enumerate(input_ND):
        for row in (row for tree in range(trees) for row in path_of(module, token_D, tree)):
            value = functional.gelu(module.in_weight[row] @ token_D + module.in_bias[row])
            expected[index] += value * module.out_weight[row]
    torch.testing.assert_close(module(input_ND), expected)
    torch.testing.assert_close(module.along_paths(input_ND), expected)
    torch.testing.assert_close(torch.stack([module(token_D) for token_D in input_ND]), expected)
    torch.testing.assert_close(module.train()(input_ND.view(5, 8, HIDDEN)), expected.view(5, 8, HIDDEN))


@torch.no_grad()
def test_one_token_reads_one_path_in_every_tree() -> None:
    """Everything else is NaN and does not show."""
    module, token_1D = network(4, 5), tokens(1)
    expected = module(token_1D)
    rows = [row for tree in range(4) for row in path_of(module, token_1D[0], tree)]
    assert len(set(rows)) == 4 * 6
    for tensor in module.parameters():
        tensor[[row for row in range(len(tensor)) if row not in rows]] = math.nan
    assert torch.equal(module(token_1D), expected)
    module.out_weight[rows[-1]] = math.nan
    assert module(token_1D).isnan().any()


@torch.no_grad()
def test_an_input_of_zero_goes_left() -> None:
    module, input_ND = network(1, 1), tokens(3)
    module.in_weight[0] = module.in_bias[0] = 0
    assert path_of(module, input_ND[0], 0) == [0, 1]
    left = functional.gelu(input_ND @ module.in_weight[1] + module.in_bias[1])[:, None] * module.out_weight[1]
    torch.testing.assert_close(module.along_paths(input_ND), left)
    torch.testing.assert_close(module.train()(input_ND), left)


def test_training_reaches_the_neurons_on_the_paths_alone() -> None:
    module, input_ND = network(2, 4).train(), tokens(3)
    module(input_ND).square().sum().backward()
    rows = sorted({row for token_D in input_ND for tree in range(2) for row in path_of(module, token_D, tree)})
    for gradient_MD in (module.in_weight.grad, module.out_weight.grad):
        assert gradient_MD is not None
        assert gradient_MD.any(1).nonzero().flatten().tolist() == rows


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_runs_in_other_precisions_with_shared_weights(dtype: torch.dtype) -> None:
    module, input_ND = network(3, 4), tokens(64).to(dtype)
    with torch.device("meta"):
        other = network(3, 4)
    shared = {name: tensor.to(dtype) for name, tensor in module.state_dict().items()}
    other.load_state_dict(shared, assign=True)
    assert other.out_weight.data_ptr() == shared["out_weight"].data_ptr()
    masked_ND, alone_ND = other(input_ND), torch.stack([other(token_D) for token_D in input_ND])
    assert masked_ND.dtype == alone_ND.dtype == dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    for output_ND in (masked_ND, alone_ND):
        off_N = (output_ND.float() - module(input_ND.float())).norm(dim=1) / module(input_ND.float()).norm(dim=1)
        assert off_N.quantile(0.8) < tolerance  # The rest may have taken another path: an input was near 0.


# --- first weights --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_first_weights_come_near_the_parent(family: str) -> None:
    parent = random_parent(family)
    few_directions = tokens(4, 2)
    layer = ParentLayer(parent.layer_weights(1), torch.empty(0), tokens(2048)[:, :4] @ few_directions)
    subblock = Subblock.parse("ultra3x3")
    weights = Ultra().first_weights(subblock, [layer], parent.shape)
    norms = {name for name in layer.weights if name.startswith(("post_attention_layernorm.", "mlp_output_norm."))}
    assert weights.keys() == {"mlp.in_weight", "mlp.in_bias", "mlp.out_weight"} | norms
    options = Ultra().layer_config(subblock)["ffn_options"]
    assert options == {"trees": 3, "depth": 3}
    module = network(3, 3)
    module.load_state_dict({name.removeprefix("mlp."): weights[name] for name in weights.keys() - norms})

    def error(input_ND: Tensor) -> float:
        hidden_NF = hidden_values(layer.weights, input_ND, parent.shape)
        down_DF, bias_D = layer.weights["mlp.down_proj.weight"], layer.weights.get("mlp.down_proj.bias")
        target_ND = functional.linear(hidden_NF, down_DF, bias_D)
        return float((module(input_ND) - target_ND).square().mean() / target_ND.square().mean())

    assert error(tokens(512, 1)[:, :4] @ few_directions) < 0.7
    features_NM = path_features(layer.ffn_input_ND, module.in_weight, module.in_bias, 3)
    assert (features_NM != 0).sum(1).eq(3 * 4).all()
    # Every tree halves the tokens at every node, so a neuron of level l is on the path of one in 2^l.
    shares_M = (features_NM != 0).float().mean(0)
    levels_M = torch.tensor([math.floor(math.log2(place + 1)) for place in range(15)]).repeat(3)
    torch.testing.assert_close(shares_M, 0.5**levels_M, atol=0.002, rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize(
    ("kind", "spelling"),
    [(Fast(), "fff1x48"), (Fast(), "fff3x5"), (Fast(), "fff5x1"), (Ultra(), "ultra1x5"), (Ultra(), "ultra3x2")],
)
def test_parameters_by_arithmetic_are_those_there_are(family: str, kind: Kind, spelling: str) -> None:
    parent = random_parent(family, dtype=torch.bfloat16)
    layer = ParentLayer(parent.layer_weights(1), torch.empty(0), tokens(64).bfloat16())
    subblock, shape = Subblock.parse(spelling), parent.shape
    kind.check(subblock, shape)
    weights = kind.first_weights(subblock, [layer], shape)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    again = kind.first_weights(subblock, [layer], shape)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    counted = sum(tensor.numel() for tensor in weights.values())
    assert kind.parameters(subblock, shape) == counted
    touched = [kind.touched(subblock, shape, count) for count in (1, 2, 10, 10_000)]
    assert touched == sorted(touched)
    assert math.isclose(touched[3], counted)


def test_what_one_token_touches() -> None:
    shape = random_parent().shape
    assert Ultra().touched(Subblock.parse("ultra4x7"), shape, 1) == HIDDEN + 4 * 8 * (2 * HIDDEN + 1)


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("ultra", "spell it like ultra4x7"),
        ("ultra4", "spell it like ultra4x7"),
        ("ultra0x7", "use 1 to 32"),
        ("ultra33x7", "use 1 to 32"),
        ("ultra4x0", "use 1 to 15"),
        ("ultra4x16", "use 1 to 15"),
        ("ultra5x11", "20475 neurons; use fewer or lower trees, of 16384 at most"),
    ],
)
def test_what_a_parent_cannot_hold_is_said(spelling: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ultra().check(Subblock.parse(spelling), random_parent().shape)


# --- the trees ------------------------------------------------------------------------------------------------------


def test_a_tree_parts_its_tokens_equally_along_their_principal_direction() -> None:
    input_ND = tokens(200) * torch.linspace(0.1, 3, HIDDEN) @ torch.linalg.qr(tokens(HIDDEN, 1)).Q + 5
    (tree,) = median_trees(input_ND, 1, 3, spread=32.0)
    assert [len(region) for region in tree.regions] == [25] * 8
    assert torch.cat(tree.regions).sort().values.tolist() == list(range(200))
    top_D = torch.linalg.svd(input_ND - input_ND.mean(0)).Vh[0]
    assert abs(float(principal_direction(input_ND) @ top_D)) > 0.9
    logits_N = input_ND @ tree.weight_CD[0] + tree.bias_C[0]
    assert math.isclose(float(logits_N.square().mean().sqrt()), 32, rel_tol=1e-4)
    assert int((logits_N >= 0).sum()) == 100


def test_later_trees_leave_out_the_roots_before_them() -> None:
    grown = median_trees(tokens(200), 4, 2, spread=1.0)
    roots = torch.stack([functional.normalize(tree.weight_CD[0], dim=0) for tree in grown])
    torch.testing.assert_close(roots @ roots.T, torch.eye(4), atol=1e-5, rtol=0)
    below = grown[3].weight_CD @ roots[:3].T
    assert below.abs().max() < 1e-4


def test_tokens_that_are_alike_are_not_parted() -> None:
    (tree,) = median_trees(tokens(1).expand(6, -1), 1, 2, spread=32.0)
    assert not tree.weight_CD.any()
    assert [len(region) for region in tree.regions] == [6] * 4
    (tree,) = median_trees(tokens(3), 1, 3, spread=32.0)
    assert all(len(region) for region in tree.regions)
    assert tree.weight_CD.isfinite().all()


def test_bad_tokens_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"raise data\.calibration_tokens"):
        median_trees(tokens(0), 1, 2, spread=1.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        median_trees(tokens(3).index_fill(0, torch.tensor(1), math.nan), 1, 2, spread=1.0)


def test_ridge_is_where_the_gradient_is_zero() -> None:
    features_NM, target_ND = tokens(40, 2)[:, :9].double(), tokens(40, 3).double()
    damping = 0.1 * features_NM.square().sum(0).mean()
    solved_MD = ridge(features_NM, target_ND, 0.1).requires_grad_()
    ((features_NM @ solved_MD - target_ND).square().sum() + damping * solved_MD.square().sum()).backward()
    assert solved_MD.grad is not None
    assert solved_MD.grad.abs().max() < 1e-9


def test_tokens_many_of_which_are_one_token_grow_a_tree() -> None:
    """As the first token of every sequence is."""
    for seed in range(40):
        input_ND = tokens(100, seed)
        input_ND[:40] = input_ND[0]
        (tree,) = median_trees(input_ND, 1, 4, spread=32.0)
        assert all(len(region) for region in tree.regions)
        assert tree.weight_CD.isfinite().all()
