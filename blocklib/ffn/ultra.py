"""`ultraKxD`: K binary trees of neurons. In each tree a token uses the D + 1 neurons on its path (UltraFastBERT).

Every neuron is one input vector, an input bias and one output vector. The GELU of its activation weights the output
vector, and the sign of the activation chooses the next neuron of the path (Belcak and Wattenhofer, arXiv 2311.10770,
section 2). Decisions are hard from the first step of training. It has no gate and no output bias, even if the parent
has them. The papers train it from random weights. Here each input vector splits its calibration tokens into halves
(`blocklib/ffn/tree.py`); each tree leaves out the directions of the earlier trees' roots. Ridge regression of the
parent's output on the GELUs along the paths gives the output vectors. Legend of shape suffixes: N tokens, D hidden, K
trees, P neurons on a path, C neurons of a tree, M neurons of all trees.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.ffn.dense import dense_output, norm_weights
from blocklib.ffn.fff import expected_union, uniform_parameter
from blocklib.ffn.rows import row_product
from blocklib.ffn.tree import median_trees, ridge
from blocklib.kind import Kind, ParentLayer
from blocklib.shape import Shape

_DEEPEST = 15
_RIDGE = 0.01
_MOST_NEURONS = 16384
"""The most neurons in all trees. The limit exists because first weights solve for all output vectors at once."""
# Smaller input vectors fit equally well, but with them the learning rates of other kinds move tokens to other paths.
_SPREAD = 1.0


class UltraFastFeedforward(nn.Module):
    """If the paths of a pass hold fewer neurons than the trees, it reads only those; else it reads all, masked. An
    input of exactly 0 goes left, as in the paper's code.
    """

    def __init__(self, config: Any):
        super().__init__()
        hidden = config.hidden_size
        self.trees: int = config.ffn_options["trees"]
        self.depth: int = config.ffn_options["depth"]
        self.neurons: int = 2 ** (self.depth + 1) - 1
        neurons = self.trees * self.neurons
        self.in_weight = uniform_parameter(neurons, hidden, fan_in=hidden)
        self.in_bias = uniform_parameter(neurons, fan_in=hidden)
        self.out_weight = uniform_parameter(neurons, hidden, fan_in=self.trees * (self.depth + 1))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        if self.training or len(tokens) * (self.depth + 1) >= self.neurons:
            features = path_features(tokens, self.in_weight, self.in_bias, self.depth)
            output = row_product(features, self.out_weight)
        else:
            output = self.along_paths(tokens)
        return output.view_as(hidden_states)

    def along_paths(self, tokens: torch.Tensor) -> torch.Tensor:
        """The output, [N, D], from the neurons on the tokens' paths alone."""
        neuron = path_roots(tokens, self.trees, self.neurons)
        path, inputs = [], []
        for _ in range(self.depth + 1):
            path.append(neuron)
            inputs.append((self.in_weight[neuron] @ tokens.unsqueeze(-1)).squeeze(-1) + self.in_bias[neuron])
            neuron = path_child(neuron, inputs[-1], self.neurons)
        values = functional.gelu(torch.cat(inputs, dim=1))
        output: torch.Tensor = functional.embedding_bag(
            torch.cat(path, dim=1), self.out_weight, mode="sum", per_sample_weights=values
        )
        return output


def path_features(tokens: torch.Tensor, in_weight: torch.Tensor, in_bias: torch.Tensor, depth: int) -> torch.Tensor:
    """Every neuron's GELU if it is on the token's path, else 0, [N, M]."""
    inputs = functional.linear(tokens, in_weight, in_bias)
    neurons = 2 ** (depth + 1) - 1
    neuron = path_roots(tokens, len(in_weight) // neurons, neurons)
    path = []
    for _ in range(depth + 1):
        path.append(neuron)
        neuron = path_child(neuron, inputs.gather(1, neuron), neurons)
    on_path = torch.cat(path, dim=1)
    return torch.zeros_like(inputs).scatter(1, on_path, functional.gelu(inputs.gather(1, on_path)))


def path_roots(tokens: torch.Tensor, trees: int, neurons: int) -> torch.Tensor:
    """The first neuron of every path, [N, K], counted over all trees; each tree has `neurons` neurons."""
    return (torch.arange(trees, device=tokens.device) * neurons).expand(len(tokens), -1)


def path_child(neuron: torch.Tensor, inputs: torch.Tensor, neurons: int) -> torch.Tensor:
    """The next neuron of every path, [N, K], given the activations of the current ones."""
    return neuron + neuron % neurons + 1 + (inputs > 0).long()


class Ultra(Kind):
    """Kind `ultra`; see the head of this file."""

    module = UltraFastFeedforward
    is_sparse = True

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if subblock.numbers.keys() != {"", "x"}:
            raise SubblockError(f"{subblock}: spell it like ultra4x7, for 4 trees of depth 7")
        trees, depth = _sizes(subblock)
        if not 1 <= trees <= shape.hidden:
            raise SubblockError(f"{subblock}: {trees} trees; use 1 to {shape.hidden}, the parent's hidden size")
        if not 1 <= depth <= _DEEPEST:
            raise SubblockError(f"{subblock}: trees of depth {depth}; use 1 to {_DEEPEST}")
        neurons = trees * (2 ** (depth + 1) - 1)
        if neurons > _MOST_NEURONS:
            raise SubblockError(f"{subblock}: {neurons} neurons; use fewer or lower trees, of {_MOST_NEURONS} at most")

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        trees, depth = _sizes(subblock)
        return {"ffn_kind": "ultra", "ffn_options": {"trees": trees, "depth": depth}}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        trees, depth = _sizes(subblock)
        neurons: int = 2 ** (depth + 1) - 1
        return shape.subblock_norm_parameters + trees * neurons * (2 * shape.hidden + 1)

    def touched(self, subblock: Subblock, shape: Shape, tokens: int) -> float:
        trees, depth = _sizes(subblock)
        neurons = sum(expected_union(2**level, tokens) for level in range(depth + 1))
        return shape.subblock_norm_parameters + trees * neurons * (2 * shape.hidden + 1)

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        """Raises as `median_trees` does."""
        (layer,) = layers
        trees, depth = _sizes(subblock)
        input_ND = layer.ffn_input_ND.float()
        grown = median_trees(input_ND, trees, depth + 1, _SPREAD)
        in_weight_MD = torch.cat([tree.weight_CD for tree in grown])
        in_bias_M = torch.cat([tree.bias_C for tree in grown])
        features_NM = path_features(input_ND, in_weight_MD, in_bias_M, depth)
        out_weight_MD = ridge(features_NM, dense_output(layer, shape), _RIDGE)
        made = {"mlp.in_weight": in_weight_MD, "mlp.in_bias": in_bias_M, "mlp.out_weight": out_weight_MD}
        dtype = layer.weights["mlp.down_proj.weight"].dtype
        return {name: tensor.to(dtype) for name, tensor in (made | norm_weights(layer)).items()}


def _sizes(subblock: Subblock) -> tuple[int, int]:
    """Trees and their depth."""
    return subblock.numbers[""], subblock.numbers["x"]
