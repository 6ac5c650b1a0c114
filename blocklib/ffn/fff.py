"""`fffDxW`: a fast feedforward network, a binary tree of depth D whose 2^D leaves are FFNs of width W.

D nodes choose the one leaf that a token runs (Belcak and Wattenhofer, arXiv 2308.14711). Leaves have the parent's form
(gated if it is) and each has an output bias of its own. In training a token runs all leaves, mixed by the nodes'
sigmoids. The nodes' entropy is added to the loss, so that hard decisions at inference change little.

First weights: each node splits its calibration tokens into halves (`blocklib/ffn/tree.py`). Each leaf holds copies of
the parent's channels that contribute most on its tokens; ridge regression on these tokens fits its down projection and
output bias. A channel may be in several leaves. Legend of shape suffixes: N tokens, D hidden, F FFN width, C nodes, L
leaves, W leaf width, M leaves side by side: L times W.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.ffn.dense import hidden_values, norm_weights
from blocklib.ffn.rows import row_product
from blocklib.ffn.tree import median_trees, ridge
from blocklib.kind import Kind, ParentLayer, Weights
from blocklib.shape import Shape

_DEEPEST = 15
_RIDGE = 0.1
# Nearly hard from the start. With a spread of 4, a few hundred steps train the mixture to depend on soft decisions.
_SPREAD = 32.0


class FastFeedforward(nn.Module):
    """Soft in training if the nodes want gradients; else hard: a token reads D nodes and one leaf.

    A logit of exactly 0 goes right, as in the paper's inference; its training code rounds that 0.5 down, to the left.
    """

    frozen_in_healing = ("node_weight", "node_bias")

    hardening = 0.3
    """Weight of the nodes' mean entropy, nats, in a loss that is the normalised squared error."""

    region_leak = 0.0
    """Probability that a node's two sides are swapped for a token. It applies in soft training only."""

    def __init__(self, config: Any):
        super().__init__()
        hidden, biased = config.hidden_size, config.mlp_bias
        width: int = config.ffn_options["width"]
        self.depth: int = config.ffn_options["depth"]
        self.leaves: int = 2**self.depth
        self.node_weight = uniform_parameter(self.leaves - 1, hidden, fan_in=hidden)
        self.node_bias = uniform_parameter(self.leaves - 1, fan_in=hidden)
        self.gate_weight, self.gate_bias = None, None
        if config.gated_ffn:
            self.gate_weight = uniform_parameter(self.leaves, width, hidden, fan_in=hidden)
            self.gate_bias = uniform_parameter(self.leaves, width, fan_in=hidden) if biased else None
        self.up_weight = uniform_parameter(self.leaves, width, hidden, fan_in=hidden)
        self.up_bias = uniform_parameter(self.leaves, width, fan_in=hidden) if biased else None
        self.down_weight = uniform_parameter(self.leaves, width, hidden, fan_in=width)
        self.down_bias = uniform_parameter(self.leaves, hidden, fan_in=width)
        self.act_fn = ACT2FN[config.hidden_act]
        self.regulariser: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.regulariser = None
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        if self.training and self.node_weight.requires_grad:
            output = self.mixed(tokens)
        elif len(tokens) == 1:
            output = self.run(tokens, self.leaf_of_one(tokens[0]))
        else:
            output = self.routed(tokens)
        return output.view_as(hidden_states)

    def mixed(self, tokens: torch.Tensor) -> torch.Tensor:
        """The sum of all leaves' outputs, [N, D], each weighted by the product of the decisions that lead to it. Sets
        `regulariser`."""
        logit = functional.linear(tokens, self.node_weight, self.node_bias)
        self.regulariser = self.hardening * decision_entropy(logit.float()).mean()
        right = torch.sigmoid(logit)
        if self.region_leak:
            right = torch.where(torch.rand_like(right) < self.region_leak, 1 - right, right)
        shares = torch.ones_like(tokens[:, :1])
        for level in range(self.depth):
            here = right[:, 2**level - 1 : 2 ** (level + 1) - 1]
            shares = torch.stack([shares * (1 - here), shares * here], dim=-1).flatten(1)
        hidden = self.hidden(tokens, slice(None)).view(len(tokens), self.leaves, -1) * shares.unsqueeze(-1)
        return hidden.flatten(1) @ self.down_weight.flatten(0, 1) + shares @ self.down_bias

    def routed(self, tokens: torch.Tensor) -> torch.Tensor:
        """The output of each token's own leaf, [N, D]; tokens of one leaf run together."""
        leaf_of = self.leaf_of_each(tokens)
        order = leaf_of.argsort()
        groups = tokens[order].split(leaf_of.bincount(minlength=self.leaves).tolist())
        output = torch.cat([self.run(group, leaf) for leaf, group in enumerate(groups) if len(group)])
        return torch.empty_like(output).index_copy(0, order, output)

    def run(self, tokens: torch.Tensor, leaf: int) -> torch.Tensor:
        """One leaf's output, [N, D]."""
        hidden = self.hidden(tokens, slice(leaf, leaf + 1))
        return row_product(hidden, self.down_weight[leaf]) + self.down_bias[leaf]

    def hidden(self, tokens: torch.Tensor, leaves: slice) -> torch.Tensor:
        """The inputs of the down projections of some leaves, side by side, [N, M]."""

        def projected(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            flat_bias = None if bias is None else bias[leaves].flatten()
            return functional.linear(tokens, weight[leaves].flatten(0, 1), flat_bias)

        up = projected(self.up_weight, self.up_bias)
        hidden: torch.Tensor = (
            self.act_fn(up)
            if self.gate_weight is None
            else self.act_fn(projected(self.gate_weight, self.gate_bias)) * up
        )
        return hidden

    def usage(self, tokens: torch.Tensor) -> torch.Tensor:
        """The number of the tokens, [N, D], that each leaf gets in inference, [L]."""
        return self.leaf_of_each(tokens).bincount(minlength=self.leaves)

    def leaf_of_one(self, token: torch.Tensor) -> int:
        """The leaf of one token, [D]."""
        node = 0
        for _ in range(self.depth):
            node = 2 * node + 1 + int(token @ self.node_weight[node] + self.node_bias[node] >= 0)
        return node - (self.leaves - 1)

    def leaf_of_each(self, tokens: torch.Tensor) -> torch.Tensor:
        """The leaf of every token, [N]."""
        node = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        for _ in range(self.depth):
            logit = (tokens * self.node_weight[node]).sum(-1) + self.node_bias[node]
            node = 2 * node + 1 + (logit >= 0).long()
        return node - (self.leaves - 1)


def decision_entropy(logit: torch.Tensor) -> torch.Tensor:
    """The entropy of each decision, in nats, 0 to ln 2: the same for either side, so region leak does not change it."""
    certainty = logit.abs()
    return functional.softplus(-certainty) + certainty * torch.sigmoid(-certainty)


def uniform_parameter(*shape: int, fan_in: int) -> nn.Parameter:
    """The paper's initial values: uniform within 1 / sqrt(fan in)."""
    return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))


class Fast(Kind):
    """Kind `fff`; see the head of this file."""

    module = FastFeedforward
    is_sparse = True

    def sized(self, subblock: Subblock, shape: Shape) -> Subblock:
        """`fff3` is fff3xW, where W is an eighth of the parent's width: all leaves together have as many hidden values
        as the parent."""
        if not subblock.size.isdigit():
            return subblock
        return Subblock(subblock.kind, f"{subblock.size}x{max(1, shape.ffn_width // 2**subblock.number)}")

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if subblock.numbers.keys() != {"", "x"}:
            raise SubblockError(f"{subblock}: spell it like fff3x1024, for depth 3 and leaves 1024 wide, or fff3")
        depth, width = _sizes(subblock)
        if not 1 <= depth <= _DEEPEST:
            raise SubblockError(f"{subblock}: the tree has depth {depth}; use 1 to {_DEEPEST}")
        if not 1 <= width <= shape.ffn_width:
            raise SubblockError(
                f"{subblock}: a leaf takes at most the parent's {shape.ffn_width} channels; "
                f"use fff{depth}x1 to fff{depth}x{shape.ffn_width}"
            )

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        depth, width = _sizes(subblock)
        return {"ffn_kind": "fff", "ffn_options": {"depth": depth, "width": width}}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        depth, _ = _sizes(subblock)
        leaves: int = 2**depth
        nodes = (leaves - 1) * (shape.hidden + 1)
        return shape.subblock_norm_parameters + nodes + leaves * _leaf_parameters(subblock, shape)

    def touched(self, subblock: Subblock, shape: Shape, tokens: int) -> float:
        depth, _ = _sizes(subblock)
        nodes = sum(expected_union(2**level, tokens) for level in range(depth)) * (shape.hidden + 1)
        return (
            shape.subblock_norm_parameters
            + nodes
            + expected_union(2**depth, tokens) * _leaf_parameters(subblock, shape)
        )

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        """Raises as `median_trees` does."""
        (layer,) = layers
        depth, width = _sizes(subblock)
        (tree,) = median_trees(layer.ffn_input_ND, 1, depth, _SPREAD)
        own = {name: tensor.float() for name, tensor in layer.weights.items() if name.startswith("mlp.")}
        norms_F = own["mlp.down_proj.weight"].norm(dim=0)
        leaves = [_leaf(own, norms_F, layer.ffn_input_ND[region].float(), width, shape) for region in tree.regions]
        weights = {name: torch.stack([leaf[name] for leaf in leaves]) for name in leaves[0]}
        weights |= {"mlp.node_weight": tree.weight_CD, "mlp.node_bias": tree.bias_C} | norm_weights(layer)
        dtype = layer.weights["mlp.down_proj.weight"].dtype
        return {name: tensor.to(dtype) for name, tensor in weights.items()}


def expected_union(places: int, tokens: int) -> float:
    """The expected number of places that get at least one token, if each token goes to a random place."""
    return places * (1 - (1 - 1 / places) ** tokens)


def _sizes(subblock: Subblock) -> tuple[int, int]:
    """Depth and leaf width."""
    return subblock.numbers[""], subblock.numbers["x"]


def _leaf_parameters(subblock: Subblock, shape: Shape) -> int:
    _, width = _sizes(subblock)
    biases = shape.mlp_bias * (shape.ffn_matrices - 1) * width + shape.hidden
    return shape.ffn_matrices * shape.hidden * width + biases


def _leaf(own: Weights, norms_F: Tensor, input_ND: Tensor, width: int, shape: Shape) -> dict[str, Tensor]:
    """One leaf's weights: the channels that contribute most on its tokens, their output fitted to the parent's.

    `norms_F` are those of the down projection's columns.
    """
    hidden_NF = hidden_values(own, input_ND, shape)
    down_FD = own["mlp.down_proj.weight"].T
    kept_W = (hidden_NF.abs().mean(0) * norms_F).topk(width).indices.sort().values
    leaf = {
        f"mlp.{name}_{part}": own[f"mlp.{name}_proj.{part}"][kept_W]
        for name in ("gate", "up")
        for part in ("weight", "bias")
        if f"mlp.{name}_proj.{part}" in own
    }
    kept_NW = hidden_NF[:, kept_W]
    missing_ND = hidden_NF @ down_FD - kept_NW @ down_FD[kept_W]
    mean_W, mean_D = kept_NW.mean(0), missing_ND.mean(0)
    change_WD = ridge(kept_NW - mean_W, missing_ND - mean_D, _RIDGE)
    leaf["mlp.down_weight"] = down_FD[kept_W] + change_WD
    leaf["mlp.down_bias"] = own.get("mlp.down_proj.bias", 0) + mean_D - mean_W @ change_WD
    return leaf
