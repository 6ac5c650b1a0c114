"""A matrix while it is rounded: the level of each number, and the scale and the minimum of each block.

Columns come first, [inputs, outputs], since rounding goes from input to input, for all outputs at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blocklib.precisions.formats import LevelFormat


@dataclass(frozen=True)
class Rounded:
    """Number i of row o is `scales_NO[n, o] * levels_IO[i, o] + minima_NO[n, o]`, all float32, where n is i over the
    numbers of a block. Minima are zero where the format has none. Scales and minima are numbers that the format
    stores."""

    format: LevelFormat
    levels_IO: Tensor
    scales_NO: Tensor
    minima_NO: Tensor

    @classmethod
    def unpacked(cls, format: LevelFormat, packed_OB: Tensor) -> "Rounded":
        levels_ONS, scales_ON, minima_ON = format.unpack_parts(packed_OB)
        return cls(format, levels_ONS.flatten(1).T.contiguous(), scales_ON.T.contiguous(), minima_ON.T.contiguous())

    @classmethod
    def empty(cls, format: LevelFormat, like_IO: Tensor) -> "Rounded":
        """One of the size of a matrix, to be filled."""
        levels_IO = torch.empty_like(like_IO)
        scales_NO, minima_NO = (torch.empty_like(like_IO[:: format.numbers]) for _ in range(2))
        return cls(format, levels_IO, scales_NO, minima_NO)

    @property
    def levels_NSO(self) -> Tensor:
        return self.levels_IO.view(-1, self.format.numbers, self.levels_IO.shape[1])

    def values_IO(self) -> Tensor:
        return (self.levels_NSO * self.scales_NO[:, None] + self.minima_NO[:, None]).flatten(0, 1)

    def packed_OB(self) -> Tensor:
        return self.format.pack(self.levels_IO.T, self.scales_NO.T, self.minima_NO.T)

    def where(self, better_O: Tensor, other: "Rounded") -> "Rounded":
        """The rows of `other` where it is better, and one's own elsewhere."""
        return Rounded(
            self.format,
            torch.where(better_O, other.levels_IO, self.levels_IO),
            torch.where(better_O, other.scales_NO, self.scales_NO),
            torch.where(better_O, other.minima_NO, self.minima_NO),
        )
