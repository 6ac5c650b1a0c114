"""`dipN`: the parent's FFN. Each token reads N % of it (Dynamic Input Pruning, arXiv 2412.01380, section 4).

It keeps the input channels of largest magnitude, the same for gate and up. From the hidden values that they give, it
keeps the largest for down. Nothing is rescaled. `dip_thresholdN` keeps the values above two thresholds, which are
calibrated to keep the same share; it needs no search for the largest values. The weights are the parent's, stored a row
per input channel and a row per neuron, so that a single token reads only the rows it needs. Many tokens together need
nearly all rows, so they go through a dense, masked product. A few tokens go one by one, as long as that reads no more
than a dense pass.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.ffn.dense import hidden_values, norm_weights
from blocklib.ffn.rows import RowLinear
from blocklib.kind import Kind, ParentLayer
from blocklib.shape import Shape

_THRESHOLD_TOKENS = 4096
_FEW_TOKENS = 8


class PrunedFFN(nn.Module):
    """A dense FFN where each token uses a part of the input channels and a part of the hidden ones."""

    def __init__(self, config: Any):
        super().__init__()
        width, hidden = config.intermediate_size, config.hidden_size
        self.gated = config.gated_ffn
        self.kept_inputs, self.kept_hidden = kept_channels(config.ffn_options["keep"], self.gated, hidden, width)
        self.in_proj = RowLinear(hidden, (2 if self.gated else 1) * width, config.mlp_bias)
        self.down_proj = RowLinear(width, hidden, config.mlp_bias)
        self.most_apart = tokens_apart(config.ffn_options["keep"])
        self.act_fn = ACT2FN[config.hidden_act]
        self.by_threshold = config.ffn_options["threshold"]
        if self.by_threshold:
            self.input_threshold = nn.Parameter(torch.empty(()))
            self.hidden_threshold = nn.Parameter(torch.empty(()))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.numel() // hidden_states.shape[-1]
        most_apart = self.most_apart if hidden_states.device.type == "cpu" else 1
        if 1 <= tokens <= most_apart and not torch.is_grad_enabled():
            apart = [self.of_one_token(token) for token in hidden_states.reshape(tokens, -1)]
            return torch.stack(apart).view_as(hidden_states)
        kept = hidden_states.masked_fill(~self.mask(hidden_states, self.kept_inputs, "input_threshold"), 0)
        hidden = self.activated(self.in_proj(kept))
        kept = hidden.masked_fill(~self.mask(hidden, self.kept_hidden, "hidden_threshold"), 0)
        output: torch.Tensor = self.down_proj(kept)
        return output

    def of_one_token(self, input_D: torch.Tensor) -> torch.Tensor:
        """The same result, but it reads only the rows that are kept."""
        inputs_K = self.chosen(input_D, self.kept_inputs, "input_threshold")
        hidden_F = self.activated(self.in_proj.picked(inputs_K, input_D[inputs_K]))
        hidden_K = self.chosen(hidden_F, self.kept_hidden, "hidden_threshold")
        return self.down_proj.picked(hidden_K, hidden_F[hidden_K])

    def activated(self, projected: torch.Tensor) -> torch.Tensor:
        """The hidden values, from the output of the joint projection."""
        if self.gated:
            gate, up = projected.chunk(2, dim=-1)
            hidden: torch.Tensor = self.act_fn(gate) * up
        else:
            hidden = self.act_fn(projected)
        return hidden

    def mask(self, values: torch.Tensor, kept: int, threshold: str) -> torch.Tensor:
        """The mask of the kept part of the last dimension."""
        sizes = values.detach().abs()
        if self.by_threshold:
            return ~(sizes <= self.get_parameter(threshold))  # NaN counts as the largest value, so it is kept.
        return torch.zeros_like(sizes, dtype=torch.bool).scatter_(-1, kept_indices(sizes, kept), True)

    def chosen(self, values: torch.Tensor, kept: int, threshold: str) -> torch.Tensor:
        """The indices of the kept values of one vector."""
        if self.by_threshold:
            return (~(values.abs() <= self.get_parameter(threshold))).nonzero().flatten()
        return kept_indices(values.abs(), kept)


def kept_indices(scores: torch.Tensor, kept: int) -> torch.Tensor:
    """The indices of the `kept` largest in the last dimension, in no order."""
    return scores.topk(kept, dim=-1, sorted=False).indices


def densities(keep: float, gated: bool) -> tuple[float, float]:
    """The shares of input and of hidden channels to keep so that a share `keep` of the weights is read. For a gated FFN
    this is the rule that the paper's code fits: two of its three matrices read the input's channels. An FFN of two
    matrices keeps the same share of the input, and the second matrix gets the rest.
    """
    if keep >= 1:
        return 1.0, 1.0
    reading = 2 if gated else 1
    inputs = 1 / (1 + math.exp(-(0.98499 * math.log(keep / (1 - keep)) + 0.29976)))
    return inputs, (reading + 1) * keep - reading * inputs


def kept_channels(percent: int, gated: bool, hidden_size: int, width: int) -> tuple[int, int]:
    """The numbers of input and hidden channels for these shares, rounded down as in the paper's code."""
    inputs, hidden = densities(percent / 100, gated)
    return int(inputs * hidden_size), int(hidden * width)


def tokens_apart(percent: int) -> int:
    """The largest number of tokens that go one by one: those that together read no more than one dense pass. A product
    of few tokens with a whole matrix takes longer than its bytes suggest, so one by one is faster even at equal bytes.
    """
    return max(1, min(_FEW_TOKENS, 100 // percent))


class DynamicInputPruning(Kind):
    output_projection = "mlp.down_proj"
    module = PrunedFFN
    is_sparse = True

    def __init__(self, by_threshold: bool):
        self._by_threshold = by_threshold

    def check(self, subblock: Subblock, shape: Shape) -> None:
        most = 100
        if not 1 <= subblock.number <= most:
            raise SubblockError(f"{subblock}: keeps a percentage of the FFN's weights; use {subblock.kind}1 to 100")
        if min(self._kept(subblock, shape)) < 1:
            raise SubblockError(
                f"{subblock}: it keeps none of {shape.hidden} input and {shape.ffn_width} hidden channels; keep more"
            )

    def _kept(self, subblock: Subblock, shape: Shape) -> tuple[int, int]:
        return kept_channels(subblock.number, shape.gated, shape.hidden, shape.ffn_width)

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        sizes = {"keep": subblock.number, "threshold": self._by_threshold}
        return {"ffn_kind": subblock.kind, "ffn_options": sizes}

    def runs_as(self, subblock: Subblock) -> Subblock:
        # Random thresholds would keep any number of values; a search for the largest takes the same time.
        return Subblock("dip", subblock.size)

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        weights = shape.ffn_matrices * shape.hidden * shape.ffn_width
        biases = shape.mlp_bias * ((shape.ffn_matrices - 1) * shape.ffn_width + shape.hidden)
        return weights + biases + shape.subblock_norm_parameters + 2 * self._by_threshold

    def touched(self, subblock: Subblock, shape: Shape, tokens: int) -> float:
        everything = self.parameters(subblock, shape)
        if tokens > tokens_apart(subblock.number):
            return everything
        inputs, hidden = self._kept(subblock, shape)
        into = (shape.ffn_matrices - 1) * shape.ffn_width
        return everything - sum(
            width * (rows - kept) * (1 - kept / rows) ** (tokens - 1)
            for rows, kept, width in ((shape.hidden, inputs, into), (shape.ffn_width, hidden, shape.hidden))
        )

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        (layer,) = layers
        weights = norm_weights(layer)
        into = [f"mlp.{name}_proj" for name in (("gate", "up") if shape.gated else ("up",))]
        weights["mlp.in_proj.weight"] = torch.cat([layer.weights[f"{name}.weight"].T for name in into], 1).contiguous()
        weights["mlp.down_proj.weight"] = layer.weights["mlp.down_proj.weight"].T.contiguous()
        if shape.mlp_bias:
            weights["mlp.in_proj.bias"] = torch.cat([layer.weights[f"{name}.bias"] for name in into])
            weights["mlp.down_proj.bias"] = layer.weights["mlp.down_proj.bias"]
        if self._by_threshold:
            thresholds = _thresholds(layer, *self._kept(subblock, shape), shape)
            for name, value in zip(("input", "hidden"), thresholds, strict=True):
                weights[f"mlp.{name}_threshold"] = value.to(weights["mlp.down_proj.weight"].dtype)
        return weights


def _thresholds(layer: ParentLayer, inputs: int, hidden: int, shape: Shape) -> tuple[Tensor, Tensor]:
    """The two magnitudes that the values of the calibration text exceed as often as these numbers of channels are
    kept."""
    input_ND = layer.ffn_input_ND[:: max(1, len(layer.ffn_input_ND) // _THRESHOLD_TOKENS)]
    input_threshold = exceeded(input_ND, inputs)
    pruned_ND = input_ND.masked_fill(input_ND.abs() <= input_threshold, 0)
    return input_threshold, exceeded(hidden_values(layer.weights, pruned_ND, shape), hidden)


def exceeded(values_NC: Tensor, kept: int) -> Tensor:
    """The magnitude that `kept` of the C values of a token exceed on average; a scalar, float32."""
    sizes = values_NC.abs().flatten().float()
    above = values_NC.shape[0] * kept
    if above >= len(sizes):
        return sizes.new_tensor(-1.0)
    return sizes.kthvalue(len(sizes) - above).values
