"""Rounding that gradients pass: a matrix computes as it is stored, and the full numbers behind it learn.

The straight-through estimator (Bengio et al., arXiv 1308.3432, section 2.3; for LLMs LLM-QAT, arXiv 2305.17888): the
rounded numbers go forward, and their gradient goes to the full ones unchanged.
"""

from typing import Any

import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor, nn

from blocklib.precisions.rounded import Rounded
from blocklib.precisions.rounding import CASTS, check_finite, round_matrix


class KeptScales(nn.Module):
    """A parametrization of a matrix [O, I]: each number goes to the nearest level on the scales and minima of
    `rounded`. Raises NotFiniteError, naming the matrix `name`, row and block."""

    _scales_ON1: Tensor
    _minima_ON1: Tensor

    def __init__(self, rounded: Rounded, name: str):
        super().__init__()
        self._format, self._name = rounded.format, name
        self.register_buffer("_scales_ON1", rounded.scales_NO.T[..., None].contiguous(), persistent=False)
        self.register_buffer("_minima_ON1", rounded.minima_NO.T[..., None].contiguous(), persistent=False)

    def forward(self, weight_OI: Tensor) -> Tensor:
        check_finite(weight_OI, f"{self._name} is not finite")
        values_ONS = self._levels_ONS(weight_OI.detach()) * self._scales_ON1 + self._minima_ON1
        return passed(weight_OI, values_ONS.flatten(1))

    def packed_OB(self, weight_OI: Tensor) -> Tensor:
        """The same numbers as they lie in a file."""
        scales_ON, minima_ON = self._scales_ON1[..., 0], self._minima_ON1[..., 0]
        return self._format.pack(self._levels_ONS(weight_OI.detach()).flatten(1), scales_ON, minima_ON)

    def _levels_ONS(self, weight_OI: Tensor) -> Tensor:
        return self._format.nearest(_in_levels(weight_OI, self._scales_ON1, self._minima_ON1))


class Cast(nn.Module):
    """The same for a type that has no blocks: f16, bf16 or f32."""

    def __init__(self, type: Type, name: str):
        super().__init__()
        self._type, self._name = type, name

    def forward(self, weight_OI: Tensor) -> Tensor:
        check_finite(weight_OI, f"{self._name} is not finite")
        return passed(weight_OI, weight_OI.detach().to(CASTS[self._type]).float())

    def packed_OB(self, weight_OI: Tensor) -> Tensor:
        return round_matrix(weight_OI, self._type, how="plain", name=self._name)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, full: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def passed(full: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, bit for bit, whose gradient goes to `full`."""
    straight: Tensor = _StraightThrough.apply(full, rounded)  # type: ignore[no-untyped-call]
    return straight


def _in_levels(weight_OI: Tensor, scales_ON1: Tensor, minima_ON1: Tensor) -> Tensor:
    blocks_ONS = weight_OI.view(len(weight_OI), scales_ON1.shape[1], -1)
    return (blocks_ONS - minima_ON1) / torch.where(scales_ON1 == 0, 1, scales_ON1)
