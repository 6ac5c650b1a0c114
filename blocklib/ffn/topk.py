"""`topkN`: the N hidden values of largest magnitude of each token are kept, the rest are set to zero (sigma-MoE, arXiv
2310.10837, section 2.1; a gated FFN ranks the products). Gate and up are computed in full, so only the down projection
reads less. It is stored a row per neuron, so that a single token reads the N rows it needs. The weights are the
parent's. It is a bound: no predictor of the important neurons can do better with the same number.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.ffn.dense import norm_weights
from blocklib.ffn.dip import kept_indices
from blocklib.ffn.rows import RowLinear
from blocklib.kind import Kind, ParentLayer
from blocklib.shape import Shape


class TopKFFN(nn.Module):
    """A dense FFN where each token uses the largest hidden values only."""

    def __init__(self, config: Any):
        super().__init__()
        width, hidden, self.kept = config.intermediate_size, config.hidden_size, config.ffn_options["kept"]
        if config.gated_ffn:
            self.gate_proj = nn.Linear(hidden, width, bias=config.mlp_bias)
        self.gated = config.gated_ffn
        self.up_proj = nn.Linear(hidden, width, bias=config.mlp_bias)
        self.down_proj = RowLinear(width, hidden, config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(hidden_states)
        hidden = self.act_fn(self.gate_proj(hidden_states)) * up if self.gated else self.act_fn(up)
        if hidden.numel() == hidden.shape[-1] and not torch.is_grad_enabled():
            alone = hidden.flatten()
            kept = kept_indices(alone.abs(), self.kept)
            return self.down_proj.picked(kept, alone[kept]).view_as(hidden_states)
        kept = kept_indices(hidden.detach().abs(), self.kept)
        output: torch.Tensor = self.down_proj(torch.zeros_like(hidden).scatter(-1, kept, hidden.gather(-1, kept)))
        return output


class TopK(Kind):
    output_projection = "mlp.down_proj"
    module = TopKFFN
    is_sparse = True

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if not 1 <= subblock.number <= shape.ffn_width:
            raise SubblockError(
                f"{subblock}: the parent's FFN has {shape.ffn_width} hidden values; use topk1 to topk{shape.ffn_width}"
            )

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        return {"ffn_kind": "topk", "ffn_options": {"kept": subblock.number}}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        weights = shape.ffn_matrices * shape.hidden * shape.ffn_width
        biases = shape.mlp_bias * ((shape.ffn_matrices - 1) * shape.ffn_width + shape.hidden)
        return weights + biases + shape.subblock_norm_parameters

    def touched(self, subblock: Subblock, shape: Shape, tokens: int) -> float:
        everything = self.parameters(subblock, shape)
        return everything if tokens > 1 else everything - (shape.ffn_width - subblock.number) * shape.hidden

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        (layer,) = layers
        own = {name: tensor for name, tensor in layer.weights.items() if name.startswith("mlp.")}
        own["mlp.down_proj.weight"] = own["mlp.down_proj.weight"].T.contiguous()
        return norm_weights(layer) | own
