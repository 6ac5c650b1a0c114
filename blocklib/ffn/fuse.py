"""`fuse(...)` and `fuse_last(...)`: a run of FFNs, without the attentions between them, as one wide FFN (FFN Fusion,
arXiv 2503.18908, section 3, theorem 3.1).

All members read the same input: gate and up are stacked along the output axis, down along the input axis, output biases
are added. But their norms differ. `fuse` folds each member's norm scale into its own gate and up columns and leaves a
norm of ones, which is exact. `fuse_last` is the paper's form: every member reads through the norm of the last one. A
layer norm's bias folds into the biases of gate and up.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.ffn.dense import Dense, DenseFFN
from blocklib.kind import Kind, ParentLayer
from blocklib.shape import Shape

_NORM, _NORM_BIAS = "post_attention_layernorm.weight", "post_attention_layernorm.bias"


class Fuse(Kind):
    output_projection = "mlp.down_proj"
    module = DenseFFN

    def __init__(self, fold_norms: bool):
        self._fold_norms = fold_norms
        self._member = Dense()

    def check(self, subblock: Subblock, shape: Shape) -> None:
        if len(subblock.parts) < 2:
            raise SubblockError(f"{subblock}: a fused run has at least two members, as in fuse(ffn512,ffn512)")
        for part in subblock.parts:
            if part.kind != "ffn":
                raise SubblockError(f"{subblock}: only dense FFNs can be fused, and {part} is not dense")
            self._member.check(part, shape)
        if shape.norms_output:
            raise SubblockError(
                f"{subblock}: each FFN of the parent has a norm behind it, so that no FFN is the sum of several; give "
                "space.fuse: null"
            )
        if shape.layer_norm and not shape.mlp_bias:
            raise SubblockError(f"{subblock}: the parent's layer norms have biases and its FFNs none to fold them into")

    def runs_as(self, subblock: Subblock) -> Subblock:
        return Subblock("ffn", str(sum(part.number for part in subblock.parts)))

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        return self._member.layer_config(self.runs_as(subblock))

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        return self._member.parameters(self.runs_as(subblock), shape)

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        members = [
            self._member.first_weights(part, [layer], shape) for part, layer in zip(subblock.parts, layers, strict=True)
        ]
        return fuse_weights(members, self._fold_norms)


def fuse_weights(members: Sequence[dict[str, Tensor]], fold_norms: bool) -> dict[str, Tensor]:
    """The weights of one wide FFN from those of several. Norms are folded in float32 at least."""
    if fold_norms:
        members = [_folded(member) for member in members]
    fused = {name: tensor for name, tensor in members[-1].items() if name in (_NORM, _NORM_BIAS)}
    for name in members[0]:
        if name.startswith(("mlp.gate_proj.", "mlp.up_proj.")):
            fused[name] = torch.cat([member[name] for member in members], dim=0)
    fused["mlp.down_proj.weight"] = torch.cat([m["mlp.down_proj.weight"] for m in members], dim=1)
    if "mlp.down_proj.bias" in members[0]:
        fused["mlp.down_proj.bias"] = torch.stack([m["mlp.down_proj.bias"] for m in members]).sum(0)
    return fused


def _folded(member: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function with its norm's scale and bias in gate and up, and a norm of ones and zeros."""
    dtype = member[_NORM].dtype
    wide = {name: tensor.to(torch.promote_types(dtype, torch.float32)) for name, tensor in member.items()}
    folded = dict(member) | {_NORM: torch.ones_like(member[_NORM])}
    for projection in ("mlp.gate_proj", "mlp.up_proj"):
        if f"{projection}.weight" in member:
            folded[f"{projection}.weight"] = (wide[f"{projection}.weight"] * wide[_NORM]).to(dtype)
            if _NORM_BIAS in member:
                shifted = wide[f"{projection}.bias"] + wide[f"{projection}.weight"] @ wide[_NORM_BIAS]
                folded[f"{projection}.bias"] = shifted.to(dtype)
    if _NORM_BIAS in member:
        folded[_NORM_BIAS] = torch.zeros_like(member[_NORM_BIAS])
    return folded
