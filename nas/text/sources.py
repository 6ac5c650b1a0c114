"""The documents of a job's text, source by source: as much of each as its share of what is asked for.

A source is a file, a dataset, or the standard library. Text that is much more than what is asked for is not read to its
end: every source is read up to the same share of itself, in files of about as many bytes. Does not know tokens.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from nas.errors import TextError
from nas.job.sections import HubDataset, Source
from nas.text.datasets import parts_of
from nas.text.files import STRETCH_CHARACTERS, TextFile
from nas.text.standard_library import stdlib_files

_BYTE_ORDER_MARK = "\ufeff"


class SourcePart(Protocol):
    """A file, or rows."""

    @property
    def size(self) -> int: ...

    def texts(self, separator: str | None) -> Iterator[tuple[str, float]]: ...


@dataclass(frozen=True)
class Documents:
    """Documents by source, none of them empty, and what share of each source they are."""

    names: tuple[str, ...]
    texts: tuple[list[str], ...]
    share: float

    @property
    def empty(self) -> tuple[str, ...]:
        """The sources that hold no text, where all was read."""
        if self.share < 1:
            return ()
        return tuple(name for name, texts in zip(self.names, self.texts, strict=True) if not texts)


def read_documents(
    key: str, source: Source, separator: str | None, part: Literal["train", "heldout"], characters: int
) -> Documents:
    """The documents of a source of the job, stripped: all, or where there are many more, about so many characters.

    `part` is which of the standard library's files. Raises TextError, naming the job's `key` and the file at fault.
    """
    try:
        sources = _sources(source, part)
        size = sum(part.size for _, parts in sources for part in parts)
        share = min(1.0, characters / size) if size else 1.0
        texts: list[list[str]] = []
        owed = 0.0
        for _, parts in sources:
            texts.append([])
            for one in parts:
                # A document that takes more than its part's share leaves less to the next parts.
                owed += share * one.size
                if share == 1 or owed > 0:
                    read, found = _head(one, separator, 1.0 if share == 1 else owed / max(one.size, 1))
                    texts[-1] += found
                    owed -= read * one.size
    except TextError as error:
        raise TextError(f"{key}: {error}") from error
    documents = Documents(tuple(name for name, _ in sources), tuple(texts), share)
    if len(documents.empty) == len(sources):
        raise TextError(f"{key}: there is no text in {', '.join(documents.empty[:5])}")
    return documents


def _head(part: SourcePart, separator: str | None, share: float) -> tuple[float, list[str]]:
    """The documents of a share of one part, and what share they took up."""
    separator = separator and separator.replace("\r\n", "\n")
    found: list[str] = []
    read = 0.0
    for text, read in part.texts(separator):
        text = _cleaned(text)
        for document in text.split(separator) if separator else [text]:
            found += (
                stretch
                for start in range(0, len(document), STRETCH_CHARACTERS)
                if (stretch := document[start : start + STRETCH_CHARACTERS].strip())
            )
        if read >= share < 1:
            break
    return read, found


def _cleaned(text: str) -> str:
    """Without byte order marks, which stand within a text where files were put together; line ends as `\\n`."""
    text = text.replace(_BYTE_ORDER_MARK, "").replace("\r\n", "\n").replace("\r", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON can spell half of a character, which no tokenizer takes.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _sources(source: Source, part: Literal["train", "heldout"]) -> list[tuple[str, Sequence[SourcePart]]]:
    if source == "stdlib":
        name = "stdlib" if part == "train" else "stdlib, held out"
        return [(name, [TextFile(path) for path in stdlib_files(part)])]
    if isinstance(source, HubDataset):
        path = Path(source.dataset)
        return [(path.name if path.exists() else source.dataset, parts_of(source))]
    return list(zip(_names(source), [[TextFile(path)] for path in source], strict=True))


def _names(paths: tuple[Path, ...]) -> list[str]:
    """The name of each file, with its folders below the common ones if two have the same name."""
    counts = Counter(path.name for path in paths)
    root = os.path.commonpath([path.parent for path in paths])
    return [path.name if counts[path.name] == 1 else os.path.relpath(path, root) for path in paths]
