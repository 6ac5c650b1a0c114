"""`linear` in an FFN slot: one linear map (Puzzle, arXiv 2411.19146, section 2). First weights are W_down W_up, the
gate ignored."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.ffn.dense import norm_weights
from blocklib.kind import Kind, ParentLayer
from blocklib.shape import Shape


class LinearFFN(nn.Module):
    """A linear map in the FFN's place."""

    def __init__(self, config: Any):
        super().__init__()
        self.linear_mlp = nn.Linear(config.hidden_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.linear_mlp(hidden_states)
        return output


class LinearFFNKind(Kind):
    output_projection = "mlp.linear_mlp"
    module = LinearFFN

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if subblock.size:
            raise SubblockError(f"{subblock}: a linear FFN takes no number; write linear")

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        return {"ffn_kind": "linear"}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        return shape.hidden * (shape.hidden + shape.mlp_bias) + shape.subblock_norm_parameters

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        (layer,) = layers
        down_DF = layer.weights["mlp.down_proj.weight"].float()
        weights = norm_weights(layer)
        weights["mlp.linear_mlp.weight"] = down_DF @ layer.weights["mlp.up_proj.weight"].float()
        if shape.mlp_bias:
            bias_D = down_DF @ layer.weights["mlp.up_proj.bias"].float() + layer.weights["mlp.down_proj.bias"].float()
            weights["mlp.linear_mlp.bias"] = bias_D
        dtype = layer.weights["mlp.down_proj.weight"].dtype
        return {name: tensor.to(dtype) for name, tensor in weights.items()}
