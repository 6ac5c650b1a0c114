"""Built subblocks on disk: one safetensors file per (layer, subblock), whole or absent.

A file's name is its choice and its key, the digest of everything it was made from, so a file is never stale: other
settings are other files. Knows nothing of how weights are made.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from blocklib.block import Choice
from blocklib.errors import MissingSubblockError, WeightsFileError
from blocklib.kind import Weights


class Library:
    """The folder of one parent's subblocks. Several processes may write to it at once."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, choice: Choice, key: str) -> Path:
        return self.root / f"{choice}-{key}.safetensors"

    def has(self, choice: Choice, key: str) -> bool:
        return self.path(choice, key).is_file()

    def load(self, choice: Choice, key: str) -> dict[str, Tensor]:
        """Raises FileNotFoundError, saying what to do, where it was never built or was deleted since."""
        path = self.path(choice, key)
        if not path.is_file():
            raise MissingSubblockError(f"{path} is not in the library; run the search again to build it")
        with undamaged(path):
            return load_file(path)

    def metadata(self, choice: Choice, key: str) -> dict[str, str]:
        """The record beside the weights. Raises FileNotFoundError as `load` does."""
        path = self.path(choice, key)
        if not path.is_file():
            raise MissingSubblockError(f"{path} is not in the library; run the search again to build it")
        with undamaged(path), safe_open(path, framework="pt") as file:
            return file.metadata() or {}

    def save(self, choice: Choice, key: str, weights: Weights, metadata: Mapping[str, str]) -> Path:
        """The file appears whole or not at all; see `write_whole`."""
        path = self.path(choice, key)
        write_whole(path, weights, metadata)
        return path


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Raise WeightsFileError where safetensors cannot read the file."""
    try:
        yield
    except SafetensorError as error:
        raise WeightsFileError(
            f"{path} is damaged ({error}); remove it and run `nas search` on its job again"
        ) from error


def write_whole(path: Path, weights: Weights, metadata: Mapping[str, str]) -> None:
    """Write beside, sync, rename: the file appears whole or not at all, whatever kills us meanwhile.

    Raises WeightsFileError where the disk is full, OSError for other reasons it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # The umask's permissions: safetensors makes files of its own, which only their owner may read.
        beside.touch()
        mode = beside.stat().st_mode & 0o777
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(contiguous, beside, metadata=dict(metadata))
        beside.chmod(mode)
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.rename(path)
    except SafetensorError as error:  # safetensors' error for a full disk
        raise WeightsFileError(f"{path} cannot be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)
