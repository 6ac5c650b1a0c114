"""`linear` in an attention slot: one linear map of the token itself (Puzzle, arXiv 2411.19146, section 2).

First weights are W_o expand(W_v): each token attends only to itself, which equals attention on a sequence of one token.
There is no cache, and there are no positions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.kind import Kind, ParentLayer
from blocklib.shape import Shape


class LinearAttention(nn.Module):
    """A linear map in the attention's place."""

    def __init__(self, config: Any, layer_idx: int):
        super().__init__()
        bias = config.qkv_bias or config.o_bias
        self.linear_attn = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        output: torch.Tensor = self.linear_attn(hidden_states)
        return output


class LinearAttentionKind(Kind):
    output_projection = "self_attn.linear_attn"
    module = LinearAttention

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if subblock.size:
            raise SubblockError(f"{subblock}: linear attention takes no number; write linear")

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        return {"attention_kind": "linear"}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        return shape.hidden * (shape.hidden + (shape.qkv_bias or shape.o_bias)) + shape.subblock_norm_parameters

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        (layer,) = layers
        output_DQ = layer.weights["self_attn.o_proj.weight"].float()
        norms = ("input_layernorm.", "attention_output_norm.")
        weights = {name: tensor for name, tensor in layer.weights.items() if name.startswith(norms)}
        weights["self_attn.linear_attn.weight"] = output_DQ @ _expand(
            layer.weights["self_attn.v_proj.weight"].float(), shape
        )
        if shape.qkv_bias or shape.o_bias:
            bias_D = output_DQ.new_zeros(shape.hidden)
            if shape.qkv_bias:
                bias_D = bias_D + output_DQ @ _expand(layer.weights["self_attn.v_proj.bias"].float(), shape)
            if shape.o_bias:
                bias_D = bias_D + layer.weights["self_attn.o_proj.bias"].float()
            weights["self_attn.linear_attn.bias"] = bias_D
        dtype = layer.weights["self_attn.o_proj.weight"].dtype
        return {name: tensor.to(dtype) for name, tensor in weights.items()}


def _expand(values: Tensor, shape: Shape) -> Tensor:
    """[K*E, ...] -> [H*E, ...]: each KV head is repeated for the query heads of its group, as in attention."""
    heads = values.view(shape.kv_heads, shape.head_dim, *values.shape[1:])
    return heads.repeat_interleave(shape.heads // shape.kv_heads, dim=0).flatten(0, 1)
