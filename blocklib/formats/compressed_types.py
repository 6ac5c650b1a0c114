"""The formats `fp8` and `int4` of the package compressed-tensors, which vLLM and transformers load: how a matrix lies
in a file.

- `fp8`: a number is float8 e4m3 (OCP 8-bit floating point, 2023) times the scale of its row.
- `int4`: a number is one of -8 to 7 times the scale of its group: 128 numbers of a row, or 64 or 32 where 128 does not
  divide the row.

There are no zero points, and scales are positive. They are bfloat16 in the file, so that an engine that holds them in
bfloat16 or in float32 reads the same. In memory a row is bytes: its numbers, then its scales.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from blocklib.errors import UnsupportedFormatError

COMPRESSED = ("fp8", "int4")
"""The names that users type, from the most bits to the fewest."""
RUN_BY = {
    "fp8": "vLLM 0.32 has kernels for weights in fp8 alone for GPUs of compute capability 7.5 on, and none for a CPU",
    "int4": "vLLM 0.32 has kernels for int4 for GPUs of compute capability 7.5 on, and one for a CPU, which takes "
    "outputs in multiples of 32",
}
"""By precision, where it runs, in words: read in vLLM's source (`kernels/linear/__init__.py`)."""
GROUPS = (128, 64, 32)
"""The sizes of a group of `int4`; a row takes the first that divides it."""
_SCALE_BYTES = 2
_SHAPE_BYTES = 16
"""The file says the size of a packed matrix, in two int64."""


@dataclass(frozen=True)
class CompressedFormat:
    """`numbers` of a row share a scale: a group, or the whole row in `fp8`.

    Prints to its name with the size of a group: `fp8`, `int4 in groups of 64`.
    """

    name: str
    numbers: int

    has_minimum = False
    has_sign = False

    def __str__(self) -> str:
        return self.name if self.is_float else f"{self.name} in groups of {self.numbers}"

    @property
    def is_float(self) -> bool:
        return self.name == "fp8"

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """What a number may be before its scale, from the least to the largest."""
        if not self.is_float:
            return tuple(range(-8, 8))
        codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        return tuple(codes[codes.isfinite()].unique().tolist())

    @property
    def least(self) -> float:
        return self.levels[0]

    def nearest(self, scaled: Tensor) -> Tensor:
        """The level nearest to each number, in the same dtype and shape; halves go to the even one."""
        held = scaled.clamp(self.least, self.levels[-1])
        return held.to(torch.float8_e4m3fn).to(scaled.dtype) if self.is_float else held.round_()

    def as_scale(self, numbers: Tensor) -> Tensor:
        """The nearest finite bfloat16 that is not negative, as float32."""
        return numbers.clamp(0, torch.finfo(torch.bfloat16).max).bfloat16().float()

    def plain_scales(self, weight_RI: Tensor) -> Tensor:
        """The scales [rows, groups] that compressed-tensors derives from the largest number of each group: that number
        over the half width of the levels."""
        width = 448.0 if self.is_float else 7.5
        return self.as_scale(weight_RI.abs().unflatten(1, (-1, self.numbers)).amax(2) / width)

    def packed_plainly(self, weight_RI: Tensor) -> Tensor:
        """The bytes of rows, uint8 [rows, `row_bytes`]: plain scales, and each number to the nearest level."""
        scales_RN = self.plain_scales(weight_RI)
        scaled_RNS = weight_RI.unflatten(1, (-1, self.numbers)) / scales_RN[..., None]
        scaled_RNS = torch.where(scales_RN[..., None] > 0, scaled_RNS, 0)
        return self.pack(self.nearest(scaled_RNS).flatten(1), scales_RN)

    def pack(self, levels_RI: Tensor, scales_RN: Tensor, minima_RN: Tensor | None = None) -> Tensor:
        """The bytes of rows, uint8 [rows, `row_bytes`]. There are no minima: what is given as such is left out."""
        if self.is_float:
            numbers_RB = levels_RI.to(torch.float8_e4m3fn).contiguous().view(torch.uint8)
        else:
            codes_RI = (levels_RI + 8).to(torch.uint8)
            numbers_RB = codes_RI[:, ::2] | codes_RI[:, 1::2] << 4
        scales_B = scales_RN.bfloat16().flatten().view(torch.uint8)
        return torch.cat([numbers_RB, scales_B.view(len(levels_RI), -1)], 1)

    def unpack_parts(self, packed_RB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Levels [rows, groups, numbers], and scales and minima [rows, groups], which are zero, float32."""
        numbers_RB, scales_RN = self.split(packed_RB)
        if self.is_float:
            levels_RI = numbers_RB.view(torch.float8_e4m3fn).float()
        else:
            levels_RI = torch.stack([numbers_RB & 15, numbers_RB >> 4], 2).flatten(1).float() - 8
        return levels_RI.unflatten(1, (-1, self.numbers)), scales_RN.float(), torch.zeros_like(scales_RN.float())

    def unpack(self, packed_RB: Tensor) -> Tensor:
        """The numbers of packed rows, float32 [rows, inputs], as an engine that computes in float32 reads them."""
        levels_RNS, scales_RN, _ = self.unpack_parts(packed_RB)
        return (levels_RNS * scales_RN[..., None]).flatten(1)

    def split(self, packed_RB: Tensor) -> tuple[Tensor, Tensor]:
        """The bytes of the numbers, uint8 [rows, bytes], and the scales, bfloat16 [rows, groups]."""
        of_group = self.numbers if self.is_float else self.numbers // 2
        groups = packed_RB.shape[1] // (of_group + _SCALE_BYTES)
        numbers_RB, scales_RB = packed_RB.split([groups * of_group, groups * _SCALE_BYTES], 1)
        return numbers_RB.contiguous(), scales_RB.flatten().clone().view(torch.bfloat16).view(-1, groups)

    def row_bytes(self, inputs: int) -> int:
        """The bytes of a row with its scales."""
        return (inputs if self.is_float else inputs // 2) + _SCALE_BYTES * (inputs // self.numbers)

    def matrix_bytes(self, outputs: int, inputs: int) -> int:
        """The bytes of all tensors that a file holds for a matrix."""
        return outputs * self.row_bytes(inputs) + (0 if self.is_float else _SHAPE_BYTES)


def compressed_format(precision: str, inputs: int) -> CompressedFormat:
    """The format of a matrix with rows of that length. Raises UnsupportedFormatError where no group divides it."""
    assert precision in COMPRESSED, precision
    if precision == "fp8":
        return CompressedFormat("fp8", inputs)
    for size in GROUPS:
        if inputs % size == 0:
            return CompressedFormat("int4", size)
    raise UnsupportedFormatError(f"int4 has groups of {', '.join(map(str, GROUPS))}, and rows have {inputs} numbers")


def tensors_of_matrix(name: str, packed_OB: Tensor, format: CompressedFormat) -> dict[str, Tensor]:
    """The tensors that a file holds for the matrix `name`, which ends with `.weight`: of `fp8` `weight` and
    `weight_scale`, of `int4` `weight_packed` (eight numbers to an int32), `weight_scale` and `weight_shape`."""
    numbers_OB, scales_ON = format.split(packed_OB)
    if format.is_float:
        return {name: numbers_OB.view(torch.float8_e4m3fn), f"{name}_scale": scales_ON}
    size = torch.tensor([len(numbers_OB), 2 * numbers_OB.shape[1]], dtype=torch.int64)
    return {f"{name}_packed": numbers_OB.view(torch.int32), f"{name}_scale": scales_ON, f"{name}_shape": size}
