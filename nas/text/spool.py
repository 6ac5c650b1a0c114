"""The pieces of documents, their texts in a file until they are drawn: memory holds some forty bytes of each.

Texts are written in the order in which they are read, and come back in the order in which pieces are drawn.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nas.text.pieces import cut, drawing_order, key_of
from nas.text.sources import Document

_ROW = np.dtype([("key", ">u8", 2), ("start", "<i8"), ("bytes", "<i4"), ("characters", "<i4"), ("source", "<i4"),
                 ("is_chat", "?"), ("is_end", "?")])  # fmt: skip
_PACKED = struct.Struct("<16sqiii??")


@dataclass(frozen=True, eq=False)
class Pieces:
    """Pieces, each once, in the order they are drawn in; `repeated` more were copies of these. `file` holds their
    texts, and `rows` says where."""

    file: IO[bytes]
    rows: NDArray[Any]
    repeated: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Document:
        row = self.rows[index]
        self.file.seek(row["start"])
        text = self.file.read(row["bytes"]).decode()
        return Document(int(row["source"]), text, bool(row["is_chat"]), bool(row["is_end"]))

    def characters(self, index: int) -> int:
        return int(self.rows[index]["characters"])


def spooled(documents: Iterable[Document], characters: int, file: IO[bytes]) -> Pieces:
    """The pieces of the documents, of about so many characters each; their texts go to `file`, opened to write and to
    read."""
    rows = bytearray()
    start = 0
    for document in documents:
        parts = [part for part in cut(document.text, characters) if part.strip()]
        for left, part in zip(reversed(range(len(parts))), parts, strict=True):
            text, is_end = part.encode(), document.is_end and not left
            file.write(text)
            sizes = start, len(text), len(part)
            rows += _PACKED.pack(key_of(part), *sizes, document.source, document.is_chat, is_end)
            start += len(text)
    file.flush()
    found = np.frombuffer(rows, _ROW)
    order = drawing_order(found["key"].astype(np.uint64), found["source"], found["characters"])
    return Pieces(file, found[order], len(found) - len(order))
