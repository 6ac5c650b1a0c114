"""The formats that matrices are rounded to: a number is `scale * level + minimum`, where the level is one of a short
list that the format fixes.

The block formats of llama.cpp stand here by the book: 32 numbers of a row share a float16 scale, and in some a minimum.
This is `ggml/src/ggml-quants.c` of llama.cpp in torch, for any device. Those of compressed-tensors are in
`blocklib/formats/compressed_types.py`.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from blocklib.formats.compressed_types import CompressedFormat

BLOCK = 32
"""Numbers of a row that share a scale."""
LARGEST = 65504.0
"""The largest float16: no scale and no minimum is larger."""


@dataclass(frozen=True)
class BlockFormat:
    """How a block of 32 numbers lies in a file.

    `levels` are in the order of their codes. `high_bits` says that the fifth bits of all codes come before the other
    four; with eight bits a code is a byte. Rounding leaves the level -128 of q8_0 alone, as llama.cpp does: its kernels
    count on that.
    """

    name: str
    levels: tuple[int, ...]
    has_minimum: bool = False
    high_bits: bool = False

    numbers = BLOCK
    has_sign = True
    """A scale may be negative."""

    @property
    def type(self) -> Type:
        return Type[self.name.upper()]

    @property
    def bytes(self) -> int:
        """Bytes of a block."""
        return int(GGML_QUANT_SIZES[self.type][1])

    @property
    def is_even(self) -> bool:
        """The levels are whole numbers without a gap."""
        return len(self.levels) == self.levels[-1] - self.levels[0] + 1

    def as_scale(self, numbers: Tensor) -> Tensor:
        """The nearest finite float16, as float32."""
        return as_float16(numbers)

    @property
    def least(self) -> int:
        """The least level that rounding uses."""
        return max(self.levels[0], -127)

    def nearest(self, scaled: Tensor) -> Tensor:
        """The level nearest to each number, in the same dtype and shape; halves go as llama.cpp's search takes them:
        to the even level where levels have no gaps, and up otherwise."""
        if self.is_even:
            return scaled.round().clamp_(self.least, self.levels[-1])
        halves = (scaled * 2).floor_().clamp_(-256, 255).int().add_(256)
        return self._nearest.to(scaled).index_select(0, halves.flatten()).view(scaled.shape)

    @cached_property
    def _nearest(self) -> Tensor:
        """The level nearest to n / 2 and all up to the next half, for n from -256 to 255."""
        levels = torch.tensor(self.levels)
        above = torch.bucketize(torch.arange(-256, 256), levels[1:] + levels[:-1], right=True)
        return levels[above].float()

    def codes(self, levels: Tensor) -> Tensor:
        """The code of each level, uint8."""
        if self.is_even:
            return (levels - self.levels[0]).to(torch.uint8)
        known = torch.tensor(self.levels, dtype=levels.dtype, device=levels.device)
        return torch.bucketize(levels.contiguous(), known).to(torch.uint8)

    def pack(self, levels_RI: Tensor, scales_RN: Tensor, minima_RN: Tensor | None = None) -> Tensor:
        """The bytes of rows, uint8 [rows, bytes of a row]. Scales and minima are float16, or are made so."""
        rows = len(levels_RI)
        codes_RNB = self.codes(levels_RI).view(rows, -1, self.numbers)
        parts = [_bytes_of(scales_RN)]
        if self.has_minimum:
            assert minima_RN is not None, self.name
            parts.append(_bytes_of(minima_RN))
        if self.high_bits:
            bits = (codes_RNB >> 4).view(rows, -1, 4, 8) << torch.arange(8, dtype=torch.uint8, device=codes_RNB.device)
            parts.append(bits.sum(-1, dtype=torch.uint8))
        if len(self.levels) == 256:
            parts.append(codes_RNB ^ 128)  # int8, as a byte: two's complement is the code with its first bit flipped
        else:
            parts.append((codes_RNB[..., :16] & 15) | (codes_RNB[..., 16:] << 4))
        return torch.cat(parts, -1).view(rows, -1)

    def unpack_parts(self, packed_RB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Levels [rows, blocks, 32], and scales and minima [rows, blocks] (zero where the format has none), float32."""
        blocks_RNB = packed_RB.view(len(packed_RB), -1, self.bytes)
        scales_RN, rest = _float16_of(blocks_RNB), blocks_RNB[..., 2:]
        minima_RN = torch.zeros_like(scales_RN)
        if self.has_minimum:
            minima_RN, rest = _float16_of(rest), rest[..., 2:]
        if len(self.levels) == 256:
            codes = rest ^ 128
        else:
            nibbles = rest[..., 4:] if self.high_bits else rest
            codes = torch.cat([nibbles & 15, nibbles >> 4], -1)
            if self.high_bits:
                shifts = torch.arange(8, dtype=torch.uint8, device=rest.device)
                codes = codes | ((rest[..., :4, None] >> shifts) & 1).flatten(-2) << 4
        levels = torch.tensor(self.levels, dtype=torch.float32, device=packed_RB.device)
        return levels[codes.int()], scales_RN, minima_RN

    def unpack(self, packed_RB: Tensor) -> Tensor:
        """The numbers of packed rows, float32 [rows, inputs], bit for bit as llama.cpp reads them."""
        levels_RNB, scales_RN, minima_RN = self.unpack_parts(packed_RB)
        values = levels_RNB * scales_RN[..., None]
        if self.has_minimum:
            values += minima_RN[..., None]
        return values.flatten(1)


def as_float16(numbers: Tensor) -> Tensor:
    """The nearest finite float16, as float32."""
    return numbers.clamp(-LARGEST, LARGEST).half().float()


def _bytes_of(numbers_RN: Tensor) -> Tensor:
    return numbers_RN.half().contiguous().view(torch.uint8).view(*numbers_RN.shape, 2)


def _float16_of(blocks_RNB: Tensor) -> Tensor:
    """The float16 that the first two bytes of each block are, as float32."""
    return blocks_RNB[..., :2].contiguous().view(torch.float16).squeeze(-1).float()


FORMATS: dict[Type, BlockFormat] = {
    each.type: each
    for each in (
        BlockFormat("q8_0", tuple(range(-128, 128))),
        BlockFormat("q5_1", tuple(range(32)), has_minimum=True, high_bits=True),
        BlockFormat("q5_0", tuple(range(-16, 16)), high_bits=True),
        BlockFormat("q4_1", tuple(range(16)), has_minimum=True),
        BlockFormat("q4_0", tuple(range(-8, 8))),
        BlockFormat("iq4_nl", (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)),
    )
}
"""Those with blocks of 32."""
LevelFormat = BlockFormat | CompressedFormat
"""What rounding knows by its levels and scales."""
MatrixType = Type | CompressedFormat
"""How a matrix is stored: a type of llama.cpp's (its casts are vLLM's, too), or a format of compressed-tensors."""


def level_format(type: MatrixType) -> LevelFormat | None:
    """The format of that type; None for casts and K-quants."""
    return type if isinstance(type, CompressedFormat) else FORMATS.get(type)
