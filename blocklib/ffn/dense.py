"""`ffnN`: an FFN of width N, gated where the parent's is; the parent's own is one of them.

First weights keep the N channels that contribute most, `mean|x_i| * ||W_down[:, i]||` (Puzzle, arXiv 2411.19146,
section 3.2), in the parent's order.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.kind import Kind, ParentLayer, Weights
from blocklib.shape import Shape

_TOKENS_AT_ONCE = 2048


class DenseFFN(nn.Module):
    """down(act(gate(x)) * up(x)); without a gate, down(act(up(x)))."""

    def __init__(self, config: Any):
        super().__init__()
        if config.gated_ffn:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.gated = config.gated_ffn
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.gated:
            hidden = self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        else:
            hidden = self.act_fn(self.up_proj(hidden_states))
        output: torch.Tensor = self.down_proj(hidden)
        return output


class Dense(Kind):
    output_projection = "mlp.down_proj"
    module = DenseFFN

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if not 1 <= subblock.number <= shape.ffn_width:
            raise SubblockError(
                f"{subblock}: the parent's FFN is {shape.ffn_width} wide; use ffn1 to ffn{shape.ffn_width}"
            )

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        return {"ffn_kind": "ffn", "intermediate_size": subblock.number}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        width = subblock.number
        biases = shape.mlp_bias * ((shape.ffn_matrices - 1) * width + shape.hidden)
        return shape.ffn_matrices * shape.hidden * width + biases + shape.subblock_norm_parameters

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        (layer,) = layers
        kept_N = layer.contribution_F.topk(subblock.number).indices.sort().values
        weights = norm_weights(layer)
        for name, tensor in layer.weights.items():
            if name.startswith(("mlp.gate_proj", "mlp.up_proj")):
                weights[name] = tensor[kept_N]
            elif name == "mlp.down_proj.weight":
                weights[name] = tensor[:, kept_N]
            elif name == "mlp.down_proj.bias":
                weights[name] = tensor
        return weights


def norm_weights(layer: ParentLayer) -> dict[str, Tensor]:
    """The tensors of the norms of a layer's FFN."""
    norms = ("post_attention_layernorm.", "mlp_output_norm.")
    return {name: tensor for name, tensor in layer.weights.items() if name.startswith(norms)}


def hidden_values(weights: Weights, input_ND: Tensor, shape: Shape) -> Tensor:
    """The input of a dense FFN's down projection, [N, F], for normed inputs, [N, D]."""

    def projected(name: str) -> Tensor:
        return functional.linear(input_ND, weights[f"mlp.{name}.weight"], weights.get(f"mlp.{name}.bias"))

    activate = ACT2FN[shape.hidden_act]
    hidden_NF: Tensor = (
        activate(projected("gate_proj")) * projected("up_proj") if shape.gated else activate(projected("up_proj"))
    )
    return hidden_NF


def dense_output(layer: ParentLayer, shape: Shape) -> Tensor:
    """The output of a layer's dense FFN for the calibration tokens, [N, D], in float32."""
    own = {name: tensor.float() for name, tensor in layer.weights.items() if name.startswith("mlp.")}
    outputs = [
        functional.linear(
            hidden_values(own, part_ND.float(), shape), own["mlp.down_proj.weight"], own.get("mlp.down_proj.bias")
        )
        for part_ND in layer.ffn_input_ND.split(_TOKENS_AT_ONCE)
    ]
    return torch.cat(outputs)
