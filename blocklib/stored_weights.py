"""A checkpoint's weights where they lie: mapped from its files when they are asked for, in the type they are stored in.

Whoever reads them needs the memory of what it reads, and processes of one machine share what they map. They go by our
names, of whatever family the checkpoint is.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from blocklib.checkpoint import Tensor
from blocklib.errors import CheckpointError
from blocklib.families import own_names
from blocklib.loading import AGAIN, Readable, reading, unpickled
from blocklib.shape import Shape

_SAMPLES, _SAMPLE_BYTES = 64, 256
_Opened = dict[Path, Callable[[str], torch.Tensor]]


@dataclass(frozen=True, eq=False)
class StoredWeights(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by our names. Picklable: it holds names and places, no numbers.

    `held` are the tensors by the names of the family's own class, `places` these names by ours, and `fingerprints`
    those of the files: a worker may run hours later, or on another node.
    """

    model_type: str
    shape: Shape
    held: Mapping[str, Tensor]
    places: Mapping[str, str]
    fingerprints: Mapping[Path, str]

    @staticmethod
    def of(found: Readable) -> "StoredWeights":
        kind, shape = found.config.model_type, found.shape
        places = {
            ours: name
            for name, tensor in found.tensors.items()
            for ours in own_names(kind, {name: torch.empty(tensor.shape, device="meta")}, shape)
        }
        fingerprints = {path: _fingerprint(path) for path in found.checkpoint.weights}
        return StoredWeights(kind, shape, found.tensors, places, fingerprints)

    def __getitem__(self, name: str) -> torch.Tensor:
        """Mapped for as long as the tensor lives, and no longer."""
        return self._read(name, {})

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def mapped(self) -> dict[str, torch.Tensor]:
        """All tensors. Raises as `check` does."""
        self.check()
        opened: _Opened = {}
        found = {name: self._read(name, opened) for name in self}
        close_files()
        return found

    def check(self) -> None:
        """Raise CheckpointError where a file is gone, or is another than it was when this parent was looked at."""
        for path, known in self.fingerprints.items():
            if _fingerprint(path) != known:
                cause = "is not the file that it was when this parent was first looked at"
                raise CheckpointError(path, cause, "put that file back, or search again from the new one")

    def _read(self, name: str, opened: _Opened) -> torch.Tensor:
        theirs = self.places[name]
        return own_names(self.model_type, {theirs: mapped(self.held[theirs], opened)}, self.shape)[name]


def mapped(tensor: Tensor, opened: _Opened | None = None) -> torch.Tensor:
    """The numbers of a tensor of a file, in its own type. `opened` are the files that stay open."""
    opened = {} if opened is None else opened
    if tensor.file not in opened:
        opened[tensor.file] = _reader(tensor.file)
    with reading(tensor.file, AGAIN):
        return opened[tensor.file](tensor.name)


def _reader(file: Path) -> Callable[[str], torch.Tensor]:
    if file.suffix != ".safetensors":
        return _unpickled(file, file.stat().st_mtime_ns).__getitem__
    with reading(file, AGAIN):
        opened: Any = safe_open(file, framework="pt")
        return partial(_tensor_of, opened)


@lru_cache(maxsize=1)
def _unpickled(file: Path, _written_at: int) -> Mapping[str, torch.Tensor]:
    """Kept, since torch's old format cannot be mapped: each of its tensors costs reading the file."""
    return unpickled(file, "cpu")


def close_files() -> None:
    """Let go of a file that could not be mapped."""
    _unpickled.cache_clear()


def _tensor_of(opened: Any, name: str) -> torch.Tensor:
    found: torch.Tensor = opened.get_tensor(name)
    return found


def _fingerprint(path: Path) -> str:
    """The size of a file, and a digest of bytes from all over it: other weights differ nearly everywhere."""
    try:
        size, state = path.stat().st_size, hashlib.blake2b()
        with path.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(sample * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                state.update(file.read(_SAMPLE_BYTES))
    except FileNotFoundError as error:
        cause = "is not there: every node that works on a parent reads its files"
        raise CheckpointError(path, cause, "put the parent into a folder that all nodes see at this path") from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}", "make it readable for every worker") from error
    return f"{size} {state.hexdigest()[:32]}"
