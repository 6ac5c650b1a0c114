"""Keys and values as they are read again after llama.cpp stored them in one of its types.

A head is stored in blocks along its numbers, keys after their positions went in, and in the order of numbers that the
architecture of the GGUF file has. Where the type has blocks and a head is a multiple of 64 numbers, llama.cpp turns
keys and values first, by Hadamard matrices that spread an outlier over many numbers (`llama-kv-cache.cpp`,
`attn_rot_k` and `attn_rot_v`), and turns back what it reads.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from blocklib.block import Architecture
from blocklib.formats.gguf_carrier import carrier_of
from blocklib.model import PuzzleNasConfig
from blocklib.precisions.rounding import CASTS, round_matrix, unpacked

_TURNED = 64
"""Heads of a multiple of so many numbers are turned, values by matrices of this size."""
_IMPLEMENTATION = "sdpa"
"""What runs the attention of every model of ours on whole sequences."""


@dataclass(frozen=True)
class KeptType:
    """The type of keys and values, by its llama.cpp name, "": none of its own; and whether the numbers of a key lie in
    the order of rotary positions that turn neighbours, not halves: then its blocks hold other numbers together."""

    name: str
    interleaved: bool = False

    @staticmethod
    def of(architecture: Architecture, config: PuzzleNasConfig) -> "KeptType":
        """That of an architecture; `config` is its parent's, or its own. Raises UnsupportedFormatError where it says a
        type, and llama.cpp does not carry it."""
        if not architecture.cache:
            return KeptType("")
        return KeptType(architecture.cache, carrier_of(config, architecture).interleaved)


@contextmanager
def kept_in(kept: KeptType) -> Iterator[None]:
    """Inside the block, the attention of every model of ours reads keys and values that were stored in this type. One
    thread at a time.

    Raises NotFiniteError where a number becomes NaN or infinite.
    """
    if not kept.name:
        yield
        return
    attend, type = ALL_ATTENTION_FUNCTIONS[_IMPLEMENTATION], Type[kept.name.upper()]

    def rounded(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **how: Any) -> Any:
        numbers = key.shape[-1]
        largest = numbers & -numbers  # the largest power of two that divides it
        order = torch.arange(numbers, device=key.device)
        if kept.interleaved:
            order = order.view(2, -1).T.flatten()
        key = stored(key[..., order], type, largest)[..., order.argsort()]
        return attend(module, query, key, stored(value, type, _TURNED), *rest, **how)

    ALL_ATTENTION_FUNCTIONS[_IMPLEMENTATION] = rounded
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[_IMPLEMENTATION] = attend


def stored(heads_BKTE: Tensor, type: Type, turned: int) -> Tensor:
    """The numbers that are read again, in the same shape and dtype; `turned` is the size of the matrices that turn
    them, where they are turned."""
    is_turned = type not in CASTS and heads_BKTE.shape[-1] % _TURNED == 0
    matrix = hadamard(turned).to(heads_BKTE) if is_turned else None
    rows = heads_BKTE if matrix is None else _turned(heads_BKTE, matrix)
    packed = round_matrix(rows.reshape(-1, heads_BKTE.shape[-1]), type, how="plain", name="keys or values")
    read: Tensor = unpacked(packed, type).to(heads_BKTE.dtype).view(heads_BKTE.shape)
    return read if matrix is None else _turned(read, matrix)


def hadamard(size: int) -> Tensor:
    """The symmetric Hadamard matrix of a power of two (Sylvester), orthonormal, so that it is its own inverse."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def _turned(heads_BKTE: Tensor, matrix: Tensor) -> Tensor:
    turned: Tensor = heads_BKTE.unflatten(-1, (-1, len(matrix))) @ matrix
    return turned.flatten(-2)
