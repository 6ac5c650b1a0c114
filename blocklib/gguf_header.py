"""A GGUF file's header: its keys, and every tensor's name, shape and type. Whether it can be a parent, before any of
its weights is read.

The `gguf` package reads such files, too, but takes seconds for a vocabulary and has no words for a file that is cut.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Standard library only, and `gguf` for the sizes of
types.
"""

import mmap
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from blocklib.checkpoint import refuse_pointer
from blocklib.errors import CheckpointError, MissingCheckpointError, UnsupportedModelError

SUFFIX = ".gguf"
ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Architectures of llama.cpp whose layers are equal and are computed as one of our families computes them."""
_AGAIN = "copy or download the file again"
_ORIGINAL = "give the folder of the checkpoint it was made from"
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# A count beyond it is none: it comes from a damaged file.
_MOST = 100_000_000
ROTARY = "rope_freqs.weight"
"""A tensor that holds what RoPE's frequencies are divided by; no weight of a model."""
_UNEQUAL = "its layers differ from each other"
# Keys of a file beyond its sizes, each with the reason why no parent may have it.
_REFUSED = {
    "expert_count": "a mixture of experts",
    "logit_scale": "scaled logits",
    "residual_scale": "a scaled residual",
    "embedding_scale": "a scaled embedding",
    "attention.scale": "a scale of attention of its own",
    "attention.clamp_kqv": "clamped attention",
    "attention.max_alibi_bias": "ALiBi",
}


@dataclass(frozen=True)
class GgufTensor:
    """`shape` as torch has it; `type` as llama.cpp spells it, like q4_1; the bytes from `start` to `end`."""

    type: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class GgufHeader:
    """The contents of a header. For an array of texts, `keys` holds its length alone."""

    file: Path
    keys: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        return str(self.keys["general.architecture"])

    @property
    def weights(self) -> dict[str, GgufTensor]:
        """The tensors that are a model's weights."""
        return {name: tensor for name, tensor in self.tensors.items() if name != ROTARY}

    @property
    def stored(self) -> str:
        """The precision of its matrices in words: "layers q4_1, embedding q8_0"."""
        parts: dict[str, Counter[str]] = {}
        for name, tensor in self.weights.items():
            if len(tensor.shape) > 1:
                part = {"token_embd.weight": "embedding", "output.weight": "head"}.get(name, "layers")
                parts.setdefault(part, Counter())[tensor.type] += prod(tensor.shape)
        said = {part: " and ".join(kind for kind, _ in parts[part].most_common()) for part in sorted(parts)[::-1]}
        return ", ".join(f"{part} {kinds}" for part, kinds in said.items())

    def own(self, key: str, default: Any = None) -> Any:
        """A key of the architecture's: `own("block_count")` is `llama.block_count`."""
        return self.keys.get(f"{self.architecture}.{key}", default)


def inspect_gguf(file: Path) -> GgufHeader:
    """Read the header, and raise where the file can be no parent.

    Raises FileNotFoundError, CheckpointError for a file that is cut, damaged, one of several, or without a tokenizer,
    and UnsupportedModelError for an architecture that is none of `ARCHITECTURES`.
    """
    header = read_header(file)
    _check_split(header)
    if header.architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{file}: its architecture is {header.architecture!r}; supported in GGUF files: {', '.join(ARCHITECTURES)}"
        )
    for key, what in _REFUSED.items():
        if header.own(key):
            raise UnsupportedModelError(f"{file}: {header.architecture}.{key}: {what} is not supported")
    window, context = header.own("attention.sliding_window"), header.own("context_length", 0)
    if window and window < context:
        raise UnsupportedModelError(f"{file}: sliding-window attention is not supported; full attention is")
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        if isinstance(header.own(key), list):
            raise CheckpointError(file, f"{header.architecture}.{key}: {_UNEQUAL}", "give a parent of equal layers")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        if not isinstance(header.own(key), int) or header.own(key) < 1:
            raise CheckpointError(file, f"has no {header.architecture}.{key}", f"convert it again, or {_ORIGINAL}")
    if not header.keys.get("tokenizer.ggml.tokens") or header.keys.get("tokenizer.ggml.model") in (None, "no_vocab"):
        raise CheckpointError(file, "holds no tokenizer", f"convert it with its vocabulary, or {_ORIGINAL}")
    return header


def read_header(file: Path) -> GgufHeader:
    """The header of any whole GGUF file of version 2 or 3."""
    if not file.is_file():
        raise MissingCheckpointError(f"{file} is gone, or is not on this machine: put the file there again")
    refuse_pointer(file)
    size = file.stat().st_size
    if size == 0:
        raise CheckpointError(file, "is empty", _AGAIN)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] != b"GGUF":
            raise CheckpointError(file, "is no GGUF file: it does not begin with GGUF", _AGAIN)
        try:
            header = _Reader(file, content).header()
        except (struct.error, IndexError) as error:
            raise CheckpointError(file, f"is cut within its header, at {size:,} bytes", _AGAIN) from error
        except (UnicodeDecodeError, OverflowError, KeyError, ZeroDivisionError) as error:
            raise CheckpointError(file, "has a damaged header", _AGAIN) from error
    needed = max((tensor.end for tensor in header.tensors.values()), default=0)
    if size < needed:
        raise CheckpointError(file, f"is cut: {size:,} bytes, and its header counts {needed:,}", _AGAIN)
    return header


def _check_split(header: GgufHeader) -> None:
    """Several files of one model cannot be read alone."""
    parts = header.keys.get("split.count", 0)
    named = re.search(r"-(\d{5})-of-(\d{5})\.gguf$", header.file.name)
    count = parts if isinstance(parts, int) and parts > 1 else int(named[2]) if named else 1
    if count > 1:
        raise CheckpointError(
            header.file,
            f"is one of {count} files of a model",
            "merge them first: llama-gguf-split --merge FIRST.gguf WHOLE.gguf",
        )


class _Reader:
    """Reads one value after the other, little-endian. Past the end of the file, struct.error or IndexError."""

    def __init__(self, file: Path, content: mmap.mmap):
        self.file, self.content, self.at = file, content, 4

    def header(self) -> GgufHeader:
        version = self.number("I")
        if version not in (2, 3):
            raise CheckpointError(self.file, f"is GGUF of version {version}; 2 and 3 can be read", "convert it again")
        tensors, keys = self.count(), self.count()
        found = dict(self.key() for _ in range(keys))
        if not isinstance(found.get("general.architecture"), str):
            raise CheckpointError(self.file, "has no general.architecture", "convert it again")
        infos = [(self.text(), self.info()) for _ in range(tensors)]
        alignment = int(found.get("general.alignment", 32))
        begin = -(-self.at // alignment) * alignment
        return GgufHeader(self.file, found, {name: self.tensor(name, begin, *info) for name, info in infos})

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self.content, self.at)
        self.at += struct.calcsize(f"<{kind}")
        return value

    def count(self) -> int:
        found = self.number("Q")
        if found > _MOST:
            raise CheckpointError(self.file, "has a damaged header", _AGAIN)
        return int(found)

    def text(self) -> str:
        length = self.count()
        if self.at + length > len(self.content):
            raise IndexError
        found = self.content[self.at : self.at + length].decode("utf-8")
        self.at += length
        return found

    def key(self) -> tuple[str, Any]:
        return self.text(), self.value(self.number("I"))

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_FORMATS[kind])
        inner, length = self.number("I"), self.count()
        if inner in _FORMATS:
            found = struct.unpack_from(f"<{length}{_FORMATS[inner]}", self.content, self.at)
            self.at += struct.calcsize(f"<{length}{_FORMATS[inner]}")
            return list(found)
        if inner != _STRING:
            raise KeyError(inner)
        for _ in range(length):
            self.at += 8 + struct.unpack_from("<Q", self.content, self.at)[0]
        return length

    def info(self) -> tuple[tuple[int, ...], int, int]:
        dimensions = self.number("I")
        if dimensions > 8:
            raise KeyError(dimensions)
        shape = [self.number("Q") for _ in range(dimensions)]
        return tuple(reversed(shape)), self.number("I"), self.number("Q")

    def tensor(self, name: str, begin: int, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        known = {member.value: member for member in GGMLQuantizationType}
        if kind not in known:
            cause = f"{name} is of type {kind}, unknown to this gguf package"
            raise CheckpointError(self.file, cause, "a newer one may read it (pip install -U gguf)")
        block, block_bytes = GGML_QUANT_SIZES[known[kind]]
        start = begin + offset
        return GgufTensor(known[kind].name.lower(), shape, start, start + prod(shape) // block * block_bytes)


def is_gguf(source: str) -> bool:
    """Whether a parent is named by a GGUF file, there or not."""
    return source.endswith(SUFFIX)
