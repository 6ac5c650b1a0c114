"""Token ids in files of numpy's format, which a process maps and reads where it looks. Knows no text."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]

_HASHED_SEQUENCES = 1 << 12


def digest_of(ids: Ids) -> str:
    """Sixteen hex digits that stand for token ids in keys: equal where shape and ids are."""
    found = hashlib.sha256(f"{ids.shape}".encode())
    for start in range(0, len(ids), _HASHED_SEQUENCES):
        found.update(ids[start : start + _HASHED_SEQUENCES].astype("<i4").tobytes())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class TokenFile:
    """The first sequences of a file of token ids; None: all. A small value, which is opened on any node that sees the
    file."""

    path: Path
    sequences: int | None = None

    def opened(self) -> Ids:
        """[sequences, sequence_length]. Pages are read when they are looked at, and the system may drop them again;
        what is written to them stays in this process."""
        ids: Ids = np.load(self.path, mmap_mode="c")
        return ids[: self.sequences]


class TokenWriter:
    """Writes a set of `sequences` sequences, each of `length` ids, as its ids come; those past its end are left out.

    A context manager: its file is on the disk when it ends.
    """

    def __init__(self, path: Path, sequences: int, length: int):
        self._shape = (sequences, length)
        self._left = sequences * length
        self._file: IO[bytes] = path.open("wb")
        self._hash = hashlib.sha256(f"{self._shape}".encode())
        self.largest = 0
        """The largest id so far."""

    def __enter__(self) -> Self:
        header = {"descr": "<i4", "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def write(self, ids: Ids) -> None:
        written = ids[: self._left].astype("<i4").tobytes()
        self._file.write(written)
        self._hash.update(written)
        self.largest = max(self.largest, int(ids[: self._left].max(initial=0)))
        self._left -= min(self._left, len(ids))

    @property
    def digest(self) -> str:
        """That of all ids, as `digest_of` has it."""
        return self._hash.hexdigest()[:16]
