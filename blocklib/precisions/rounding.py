"""One matrix rounded to one of llama.cpp's types, or compressed-tensors' formats, so that its outputs move least, in
closed form.

- plain: the bits that llama.cpp writes without an importance matrix, or that compressed-tensors writes.
- diagonal: each block's scale weighs the error of each input by its mean square (an importance matrix).
- feedback: GPTQ. What is rounded later makes up for the error so far.
- refit: feedback, then all scales of a row solved together, then levels moved, then scales again.

K-quants are llama.cpp's own, with or without importances. No row of any of these is worse than plain's.
"""

from collections.abc import Iterator
from typing import Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from blocklib.errors import NotFiniteError, SettingError, UnsupportedFormatError
from blocklib.formats.compressed_types import CompressedFormat
from blocklib.formats.gguf_types import quantise, stored_bytes
from blocklib.precisions.feedback import feedback
from blocklib.precisions.formats import BLOCK, LevelFormat, MatrixType, level_format
from blocklib.precisions.moments import InputMoments
from blocklib.precisions.refit import output_error_O, refit
from blocklib.precisions.rounded import Rounded
from blocklib.precisions.scales import diagonal

How = Literal["plain", "diagonal", "feedback", "refit"]
CASTS = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}
TOO_LARGE = 2.0**29
"""More than any block format holds: a float16 times 128 times 32 in q6_k."""
CHUNK_NUMBERS, CHUNK_ROWS = 2**21, 2048
"""Rows are rounded in chunks of so many numbers and rows at most: a column of 32 inputs stays in a core's cache."""


def round_matrix(
    weight_OI: Tensor,
    type: MatrixType,
    moments: Tensor | InputMoments | None = None,
    how: How = "refit",
    name: str = "",
) -> Tensor:
    """The matrix as it lies in the file, uint8 [outputs, bytes of a row], on the weight's device.

    `moments` [I, I] are those of the matrix's inputs; matrices that share inputs share what is derived from them when
    they are given the same InputMoments. Casts (f32, f16, bf16) and "plain" need none. Raises SettingError (a
    ValueError) where moments are missing or of another size, UnsupportedFormatError where rows are no multiple of the
    type's block, and NotFiniteError, with a place, for a number that is NaN or infinite or becomes so.
    """
    name = name or "a matrix"
    weight_OI = weight_OI.detach().float()
    size = type.numbers if isinstance(type, CompressedFormat) else gguf.GGML_QUANT_SIZES[type][0]
    if weight_OI.shape[1] % size:
        raise UnsupportedFormatError(
            f"{name}: {type.name.lower()} has blocks of {size}, and rows have {weight_OI.shape[1]} numbers"
        )
    check_finite(weight_OI, f"{name} is not finite")
    if type in CASTS or how == "plain":
        return torch.cat([_plain(weight_OI[rows], type, rows.start, name) for rows in _chunks(weight_OI)])
    known = _known(moments, weight_OI, how, name)
    parts = []
    for rows in _chunks(weight_OI):
        plain_OB = _plain(weight_OI[rows], type, rows.start, name)
        format = level_format(type)
        if format is not None:
            parts.append(_rounded(weight_OI[rows], plain_OB, format, known, how))
        else:
            assert not isinstance(type, CompressedFormat)
            parts.append(_with_importance(weight_OI[rows], plain_OB, type, known))
    return torch.cat(parts)


def unpacked(packed_OB: Tensor, type: MatrixType) -> Tensor:
    """The numbers of a packed matrix, float32 [outputs, inputs], as the engine reads them."""
    format = level_format(type)
    if format is not None:
        return format.unpack(packed_OB)
    assert not isinstance(type, CompressedFormat)
    if type in CASTS:
        return packed_OB.contiguous().view(CASTS[type]).float()
    with np.errstate(all="ignore"):  # an infinite scale times zero
        values_OI = gguf.dequantize(packed_OB.cpu().numpy(), type)
    return torch.from_numpy(values_OI).to(packed_OB.device)


def _chunks(weight_OI: Tensor) -> Iterator[slice]:
    rows = max(1, min(CHUNK_ROWS, CHUNK_NUMBERS // weight_OI.shape[1]))
    return (slice(first, min(first + rows, len(weight_OI))) for first in range(0, len(weight_OI), rows))


def _plain(weight_OI: Tensor, type: MatrixType, first_row: int, name: str) -> Tensor:
    if isinstance(type, CompressedFormat):
        packed_OB = type.packed_plainly(weight_OI)
        check_finite(type.unpack(packed_OB), f"{name} has a number too large for {type.name}", first_row)
        assert packed_OB.shape[1] == type.row_bytes(weight_OI.shape[1])
        return packed_OB
    if type in CASTS:
        packed_OB = weight_OI.to(CASTS[type]).contiguous().view(torch.uint8)
    else:
        packed_OB = torch.from_numpy(quantise(weight_OI.cpu().numpy(), type)).to(weight_OI.device)
    holds = "ends sooner" if type in CASTS else "has scales and minima of float16, which ends at 65504"
    problem = f"{name} has a number too large for {type.name.lower()}, which {holds}"
    held_OI = unpacked(packed_OB, type)
    if type not in CASTS:  # llama.cpp makes zeros of what is so large that its square is no float32
        held_OI = held_OI.where(weight_OI.abs() < TOO_LARGE, torch.inf)
    check_finite(held_OI, problem, first_row)
    assert packed_OB.numel() == stored_bytes(tuple(weight_OI.shape), type)
    return packed_OB


def _known(moments: Tensor | InputMoments | None, weight_OI: Tensor, how: How, name: str) -> InputMoments:
    if moments is None:
        raise SettingError(f"{name}: how={how!r} needs the moments of its inputs; without them say how='plain'")
    known = InputMoments(moments) if isinstance(moments, Tensor) else moments
    inputs = weight_OI.shape[1]
    if known.moments_II.shape != (inputs, inputs):
        shape = list(known.moments_II.shape)
        raise SettingError(f"{name} has {inputs} inputs, and its moments are {shape}")
    check_finite(known.moments_II, f"the moments of the inputs of {name} are not finite")
    return known


def check_finite(numbers_RI: Tensor, problem: str, first_row: int = 0) -> None:
    finite = numbers_RI.isfinite()
    if not finite.all():
        row, column = (~finite).nonzero()[0].tolist()
        raise NotFiniteError(f"{problem}: row {first_row + row}, block {column // BLOCK} (of {BLOCK} numbers)")


def _rounded(weight_OI: Tensor, plain_OB: Tensor, format: LevelFormat, moments: InputMoments, how: How) -> Tensor:
    weight_IO = weight_OI.T.contiguous()
    plain = Rounded.unpacked(format, plain_OB)
    plain_error_O = output_error_O(weight_IO, plain.values_IO(), moments)
    best, error_O = _sought(weight_IO, moments, format, how)
    return plain.where(error_O < plain_error_O, best).packed_OB()


def _sought(weight_IO: Tensor, moments: InputMoments, format: LevelFormat, how: How) -> tuple[Rounded, Tensor]:
    if how == "diagonal":
        rounded = diagonal(weight_IO, moments.importance_I, format)
    else:
        rounded = feedback(weight_IO, moments, format)
    if how == "refit":
        better = refit(weight_IO, rounded, moments)
        return better.rounded, better.error_O
    return rounded, output_error_O(weight_IO, rounded.values_IO(), moments)


def _with_importance(weight_OI: Tensor, plain_OB: Tensor, type: Type, moments: InputMoments) -> Tensor:
    """llama.cpp's own, the same for each `how`: its two floors of scales have no closed form."""
    made = quantise(weight_OI.cpu().numpy(), type, moments.importance_I.cpu().numpy())
    made_OB = torch.from_numpy(made).to(weight_OI.device)
    plain_error_O, error_O = (
        output_error_O(weight_OI.T, unpacked(packed_OB, type).T, moments) for packed_OB in (plain_OB, made_OB)
    )
    return torch.where((error_O < plain_error_O)[:, None], made_OB, plain_OB)
