"""Precisions of a GGUF file: which type each tensor has, how many bytes that takes, and the numbers in it.

The choice of types is llama.cpp's own (`llama-quantize`) without its mixtures, in which a tensor's type depends on its
layer: `q4_k` is what it calls `--pure`, but for the head.
- Norms, biases and all other vectors are f32.
- Matrices are of the precision's own type, if their rows are multiples of its block: 256 for K-quants, 32 otherwise.
  If not, a K-quant falls back to a type with blocks of 32, and rows that are no multiple of 32 are f16.
- The head, which may be the embedding as well, is q6_k at every precision below q8_0.

The `gguf` package quantises what it can; llama.cpp's own function, from the library that the package `xllamacpp`
carries, does `iq4_nl` and the K-quants.
"""

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from blocklib.errors import MissingLlamaCppError, UnsupportedFormatError
from blocklib.shape import Shape

PRECISIONS: dict[str, Type] = {
    name: Type[name.upper()]
    for name in ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl",
                 "q6_k", "q5_k", "q4_k", "q3_k", "q2_k")
}  # fmt: skip
"""The type of most matrices, by the name that users type."""
_PLAIN = (Type.F32, Type.F16, Type.BF16)
_FALLBACK = {
    Type.Q2_K: Type.Q4_0,
    Type.Q3_K: Type.Q4_0,
    Type.Q4_K: Type.Q5_0,
    Type.Q5_K: Type.Q5_1,
    Type.Q6_K: Type.Q8_0,
}
"""llama.cpp's (`tensor_type_fallback`), for rows that are no multiple of 256. Older versions took IQ4_NL, of the same
size, for the first two."""
_BY_ENGINE = (Type.IQ4_NL, *_FALLBACK)
"""Types that the `gguf` package reads and cannot write."""


_OFFERED = ("q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "iq4_nl", "q3_k", "q2_k")
"""The types that `all` stands for, from the most bits to the fewest."""


def precisions_for(shape: Shape) -> tuple[str, ...]:
    """Those that a parent of this shape can be stored in: whose blocks divide its rows. The rows that lead out of an
    FFN may be an exception, which is stored as `tensor_type` says."""
    rows = (shape.hidden, shape.heads * shape.head_dim)
    return tuple(name for name in _OFFERED if not any(row % _block(PRECISIONS[name]) for row in rows))


def precision_type(precision: str) -> Type:
    """Raises UnsupportedFormatError naming the precisions there are."""
    if precision not in PRECISIONS:
        raise UnsupportedFormatError(
            f"GGUF has no precision {precision!r} that this package writes; use one of {', '.join(PRECISIONS)}"
        )
    return PRECISIONS[precision]


def tensor_type(shape: tuple[int, ...], precision: str, is_head: bool = False) -> Type:
    """The type of a tensor [outputs, inputs], or of a vector."""
    asked = precision_type(precision)
    if len(shape) == 1:
        return Type.F32
    if is_head and asked not in (*_PLAIN, Type.Q8_0):
        asked = Type.Q6_K
    if shape[-1] % _block(asked):
        asked = _FALLBACK.get(asked, asked)
    return Type.F16 if shape[-1] % _block(asked) else asked


def stored_bytes(shape: tuple[int, ...], type: Type) -> int:
    """The bytes of a tensor in the file, without the padding to 32 bytes that follows it."""
    numbers, size = gguf.GGML_QUANT_SIZES[type]
    return int(np.prod(shape)) // numbers * size


def quantise(values: NDArray[np.float32], type: Type, importance_I: NDArray[np.float32] | None = None) -> NDArray[Any]:
    """The tensor [..., inputs] as it lies in the file: floats, or bytes [..., bytes of a row].

    With the importance of each input, llama.cpp weighs errors by it (what `llama-quantize --imatrix` does). Raises
    MissingLlamaCppError where only llama.cpp can do it and is not installed.
    """
    if type not in _BY_ENGINE and importance_I is None:
        with np.errstate(all="ignore"):  # as C does: a scale that is no float32 is 0 or infinite
            return np.ascontiguousarray(gguf.quantize(values, type))
    if importance_I is not None:
        importance_I = np.ascontiguousarray(importance_I, dtype=np.float32)
        assert importance_I.shape == values.shape[-1:], f"{importance_I.shape} for {values.shape}"
    values = np.ascontiguousarray(values, dtype=np.float32)
    rows, numbers = values.size // values.shape[-1], values.shape[-1]
    made = np.empty((*values.shape[:-1], stored_bytes((numbers,), type)), dtype=np.uint8)
    written = _engine_library().ggml_quantize_chunk(
        int(type), values.ctypes.data, made.ctypes.data, 0, rows, numbers,
        None if importance_I is None else importance_I.ctypes.data,
    )  # fmt: skip
    assert written == made.nbytes, f"{type.name}: {written} bytes, not {made.nbytes}"
    return made


def _block(type: Type) -> int:
    return gguf.GGML_QUANT_SIZES[type][0]


@cache
def _engine_library() -> ctypes.CDLL:
    """llama.cpp's library. It is loaded for one function, and starts no thread."""
    found = importlib.util.find_spec("xllamacpp")
    libraries = sorted(Path(found.origin).parent.glob("*.so")) if found and found.origin else []
    if not libraries:
        raise MissingLlamaCppError(
            "iq4_nl, K-quants and importances need llama.cpp, which is not installed: "
            "pip install 'puzzle-nas[llama-cpp]'"
        )
    library = ctypes.CDLL(str(libraries[0]))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return library
