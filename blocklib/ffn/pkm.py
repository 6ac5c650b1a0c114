"""`pkmNxHkK`: a product-key memory of N x N slots, H heads, the best K slots of each (Large Memory Layers with Product
Keys, arXiv 1907.05242; with ReLU in place of softmax after sigma-MoE, arXiv 2310.10837, section 3.2).
`pkm_softmaxNxHkK` is the original.

A head's query is cut in two; each half is compared with N half-keys. Slot (i, j) scores the sum of half-key i's and
half-key j's, so the best K slots are among the K x K sums of the best K of each half: N^2 slots for 2 N comparisons.
Heads share the values. No published method starts from a dense FFN. Here the half-keys are projected inputs of the
calibration text, and ridge regression of the parent's output on the chosen slots gives the values.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.ffn.dense import dense_output, norm_weights
from blocklib.ffn.tree import ridge
from blocklib.kind import Kind, ParentLayer
from blocklib.shape import Shape

_RIDGE = 1e-2
_LARGEST = 128
"""The most slots along a side. The limit exists because initial weights solve for the values of all slots at once."""


class ProductKeyMemory(nn.Module):
    """The values of the slots whose keys match a token's queries best, weighted by the match."""

    def __init__(self, config: Any):
        super().__init__()
        sizes, hidden = config.ffn_options, config.hidden_size
        self.side, self.heads, self.kept = sizes["side"], sizes["heads"], sizes["kept"]
        self.softmax, half = sizes["softmax"], half_size(hidden)
        self.query_proj = nn.Linear(hidden, self.heads * 2 * half, bias=False)
        self.keys = nn.Parameter(torch.empty(self.heads, 2, self.side, half))
        self.values = nn.Parameter(torch.empty(self.side**2, hidden))
        self.value_bias = nn.Parameter(torch.empty(hidden))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inputs_ND = hidden_states.reshape(-1, hidden_states.shape[-1])
        slots_NHK, weights_NHK = self.look_up(inputs_ND)
        output_ND = functional.embedding_bag(
            slots_NHK.flatten(1), self.values, mode="sum", per_sample_weights=weights_NHK.flatten(1)
        )
        return (output_ND + self.value_bias).view_as(hidden_states)

    def look_up(self, inputs_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen slots of every head and their weights, both [N, H, K]."""
        queries_NHSC = self.query_proj(inputs_ND).unflatten(-1, (self.heads, 2, -1))
        return look_up(queries_NHSC, self.keys, self.kept, self.softmax)

    def usage(self, inputs_ND: torch.Tensor) -> torch.Tensor:
        """How often each slot is chosen by the tokens, [N^2]."""
        slots_NHK, _ = self.look_up(inputs_ND)
        return torch.bincount(slots_NHK.flatten(), minlength=self.side**2)


def look_up(
    queries_NHSC: torch.Tensor, keys_HSnC: torch.Tensor, kept: int, softmax: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best slots of every head and their weights, both [N, H, K]; queries and keys in two halves, S."""
    scores_NHSn = torch.einsum("nhsc,hsmc->nhsm", queries_NHSC, keys_HSnC).to(keys_HSnC.dtype)
    best_NHSK, which_NHSK = scores_NHSn.topk(kept, dim=-1)
    sums_NHKK = best_NHSK[:, :, 0, :, None] + best_NHSK[:, :, 1, None, :]
    score_NHK, pair_NHK = sums_NHKK.flatten(2).topk(kept, dim=-1)
    row_NHK = which_NHSK[:, :, 0].gather(2, pair_NHK // kept)
    column_NHK = which_NHSK[:, :, 1].gather(2, pair_NHK % kept)
    weights_NHK = score_NHK.softmax(-1) if softmax else score_NHK.relu()
    return row_NHK * keys_HSnC.shape[2] + column_NHK, weights_NHK


def half_size(hidden_size: int) -> int:
    """The size of half a query for a model of this hidden size: an eighth of it, at least 4."""
    return max(4, hidden_size // 8)


class ProductKeys(Kind):
    module = ProductKeyMemory
    is_sparse = True

    def __init__(self, softmax: bool):
        self._softmax = softmax

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if list(subblock.numbers) != ["", "x", "k"]:
            raise SubblockError(
                f"{subblock}: write the side of the memory, the heads and how many slots each reads, "
                f"as in {subblock.kind}22x2k16"
            )
        side, heads, kept = subblock.numbers.values()
        if not 2 <= side <= _LARGEST or heads < 1 or not 1 <= kept <= side:
            raise SubblockError(
                f"{subblock}: side {side}, {heads} heads, {kept} slots; use a side of 2 to {_LARGEST}, at least one "
                f"head, and 1 to {side} slots"
            )

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        side, heads, kept = subblock.numbers.values()
        sizes = {"side": side, "heads": heads, "kept": kept, "softmax": self._softmax}
        return {"ffn_kind": subblock.kind, "ffn_options": sizes}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        side = subblock.numbers[""]
        return self._fixed(subblock, shape) + side**2 * shape.hidden

    def touched(self, subblock: Subblock, shape: Shape, tokens: int) -> float:
        side, heads, kept = subblock.numbers.values()
        read = side**2 * (1 - (1 - kept / side**2) ** (heads * tokens))
        return self._fixed(subblock, shape) + read * shape.hidden

    def _fixed(self, subblock: Subblock, shape: Shape) -> int:
        """The parameters that every token reads: queries, keys, the output's bias and the norm."""
        side, heads, _ = subblock.numbers.values()
        half = half_size(shape.hidden)
        return 2 * heads * half * (shape.hidden + side) + shape.hidden + shape.subblock_norm_parameters

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        (layer,) = layers
        side, heads, kept = subblock.numbers.values()
        half, seeded = half_size(shape.hidden), torch.Generator().manual_seed(0)
        input_ND = layer.ffn_input_ND.float()
        query_QD = torch.randn(heads * 2 * half, shape.hidden, generator=seeded).to(input_ND) / shape.hidden**0.5
        seen_NHSC = (input_ND @ query_QD.T).unflatten(-1, (heads, 2, half))
        # Every head and half draws its own tokens. Keys have norm 1, so that no key matches every query.
        drawn_HSn = torch.randint(len(input_ND), (heads, 2, side), generator=seeded)
        keys = [[seen_NHSC[drawn_HSn[h, s], h, s] for s in (0, 1)] for h in range(heads)]
        keys_HSnC = functional.normalize(torch.stack([torch.stack(pair) for pair in keys]), dim=-1)
        slots_NHK, weights_NHK = look_up(seen_NHSC, keys_HSnC, kept, self._softmax)
        features_NV = input_ND.new_zeros(len(input_ND), side**2)
        features_NV.scatter_add_(1, slots_NHK.flatten(1), weights_NHK.flatten(1))
        output_ND = dense_output(layer, shape)
        mean_V, mean_D = features_NV.mean(0), output_ND.mean(0)
        values_VD = ridge(features_NV - mean_V, output_ND - mean_D, _RIDGE)
        made = {"mlp.query_proj.weight": query_QD, "mlp.keys": keys_HSnC, "mlp.values": values_VD}
        made["mlp.value_bias"] = mean_D - mean_V @ values_VD
        dtype = layer.weights["mlp.down_proj.weight"].dtype
        return {name: tensor.to(dtype) for name, tensor in (made | norm_weights(layer)).items()}
