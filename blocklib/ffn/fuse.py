"""`fuse(...)` and `fuse_last(...)`: a run of FFNs, the attentions between them gone, as one wide FFN (FFN Fusion,
arXiv 2503.18908, section 3, theorem 3.1).

All members read the same input: gate and up are stacked along the output axis, down along the input axis, output
biases are added. Their norms differ, though. `fuse` folds each member's norm scale into its own gate and up columns
and leaves a norm of ones, which is exact; `fuse_last` is the paper's form, where every member reads through the norm of
the last.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blocklib.block import Subblock
from blocklib.ffn.dense import Dense, GatedFFN
from blocklib.kind import Kind, ParentLayer
from blocklib.shape import Shape

_NORM = "post_attention_layernorm.weight"


class Fuse(Kind):
    output_projection = "mlp.down_proj"
    module = GatedFFN

    def __init__(self, fold_norms: bool):
        self._fold_norms = fold_norms
        self._member = Dense()

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if len(subblock.parts) < 2:
            raise ValueError(f"{subblock}: a fused run has at least two members, as in fuse(ffn512,ffn512)")
        for part in subblock.parts:
            if part.kind != "ffn":
                raise ValueError(f"{subblock}: only gated FFNs can be fused, and {part} is none")
            self._member.check(part, shape)

    def _wide(self, subblock: Subblock) -> Subblock:
        return Subblock("ffn", str(sum(part.number for part in subblock.parts)))

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        return self._member.layer_config(self._wide(subblock))

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        return self._member.parameters(self._wide(subblock), shape)

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        members = [
            self._member.first_weights(part, [layer], shape) for part, layer in zip(subblock.parts, layers, strict=True)
        ]
        return fuse_weights(members, self._fold_norms)


def fuse_weights(members: Sequence[dict[str, Tensor]], fold_norms: bool) -> dict[str, Tensor]:
    """The weights of one wide FFN from those of several. Norms are folded in float32 at least."""
    norm_D = members[-1][_NORM]
    fused = {_NORM: torch.ones_like(norm_D) if fold_norms else norm_D}
    for projection in ("gate_proj", "up_proj"):
        name = f"mlp.{projection}.weight"
        stacked = [_folded(m[name], m[_NORM]) if fold_norms else m[name] for m in members]
        fused[name] = torch.cat(stacked, dim=0)
        bias = f"mlp.{projection}.bias"
        if bias in members[0]:
            fused[bias] = torch.cat([m[bias] for m in members])
    fused["mlp.down_proj.weight"] = torch.cat([m["mlp.down_proj.weight"] for m in members], dim=1)
    if "mlp.down_proj.bias" in members[0]:
        fused["mlp.down_proj.bias"] = torch.stack([m["mlp.down_proj.bias"] for m in members]).sum(0)
    return fused


def _folded(weight_FD: Tensor, norm_D: Tensor) -> Tensor:
    wide = torch.promote_types(weight_FD.dtype, torch.float32)
    return (weight_FD.to(wide) * norm_D.to(wide)).to(weight_FD.dtype)
