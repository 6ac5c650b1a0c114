"""`ffnN`: a gated FFN of width N; the parent's own is one of them.

First weights keep the N channels that contribute most, `mean|x_i| * ||W_down[:, i]||` (Puzzle, arXiv 2411.19146,
section 3.2), in the parent's order.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from blocklib.block import Subblock
from blocklib.kind import Kind, ParentLayer
from blocklib.shape import Shape


class GatedFFN(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, config: Any):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
        return output


class Dense(Kind):
    output_projection = "mlp.down_proj"
    module = GatedFFN

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if not 1 <= subblock.number <= shape.ffn_width:
            raise ValueError(
                f"{subblock}: the parent's FFN is {shape.ffn_width} wide; use ffn1 to ffn{shape.ffn_width}"
            )

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        return {"intermediate_size": subblock.number}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        width = subblock.number
        return 3 * shape.hidden * width + shape.mlp_bias * (2 * width + shape.hidden) + shape.hidden

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        (layer,) = layers
        kept_N = layer.contribution_F.topk(subblock.number).indices.sort().values
        weights = {"post_attention_layernorm.weight": layer.weights["post_attention_layernorm.weight"]}
        for name, tensor in layer.weights.items():
            if name.startswith(("mlp.gate_proj", "mlp.up_proj")):
                weights[name] = tensor[kept_N]
            elif name == "mlp.down_proj.weight":
                weights[name] = tensor[:, kept_N]
            elif name == "mlp.down_proj.bias":
                weights[name] = tensor
        return weights
