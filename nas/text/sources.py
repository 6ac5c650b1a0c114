"""The documents of a job's text, source by source: as much of each as its share of what is asked for.

A source is a file, a dataset, or the standard library. Documents are read one after the other, and none is held. Text
that is much more than what is asked for is not read to its end: every source is read up to the same share of itself, in
files of about as many bytes. Does not know tokens.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from nas.errors import TextError
from nas.job.data import Data, HubDataset, Source
from nas.text.chats import Chat
from nas.text.datasets import parts_of
from nas.text.files import STRETCH_CHARACTERS, Stretch, TextFile
from nas.text.standard_library import stdlib_files

_BYTE_ORDER_MARK = "\ufeff"


class SourcePart(Protocol):
    """A file, or rows."""

    @property
    def size(self) -> int: ...

    def texts(self, separator: str | None) -> Iterator[Stretch]: ...


@dataclass(frozen=True)
class Document:
    """A stretch of text of one source, by the source's index, that is not empty. A chat is text already; no part of it
    is left out. `is_end`: nothing of the document comes after it."""

    source: int
    text: str
    is_chat: bool = False
    is_end: bool = True


@dataclass(frozen=True)
class Documents:
    """The documents of a text, which are read from its sources' parts each time that they are iterated over.

    `share` of every source is read, its head. `key` is that of the job that names them.
    """

    key: str
    names: tuple[str, ...]
    share: float
    parts: tuple[Sequence[SourcePart], ...]
    separator: str | None
    render: Callable[[Chat], str]

    def __iter__(self) -> Iterator[Document]:
        """Raises TextError, naming the job's key and the file at fault."""
        try:
            owed = 0.0
            for source, parts in enumerate(self.parts):
                for one in parts:
                    # A document that takes more than its part's share leaves less to the next parts.
                    owed += self.share * one.size
                    if self.share == 1 or owed > 0:
                        share = 1.0 if self.share == 1 else owed / max(one.size, 1)
                        read = yield from self._head(source, one, share)
                        owed -= read * one.size
        except TextError as error:
            raise TextError(f"{self.key}: {error}") from error

    def _head(self, source: int, part: SourcePart, share: float) -> Generator[Document, None, float]:
        """The documents of a share of one part. Returns what share they took up."""
        separator = self.separator and self.separator.replace("\r\n", "\n")
        read, held = 0.0, ""  # a stretch is held until it is known whether more of its document follows
        for found, read, is_end in part.texts(separator):
            is_chat = isinstance(found, Chat)
            text = _cleaned(self.render(found) if isinstance(found, Chat) else found)
            documents = text.split(separator) if separator and not is_chat else [text]
            for left, document in zip(reversed(range(len(documents))), documents, strict=True):
                for start in range(0, len(document), STRETCH_CHARACTERS):
                    if stretch := document[start : start + STRETCH_CHARACTERS].strip():
                        if held:
                            yield Document(source, held, is_chat, is_end=False)
                        held = stretch
                if held and (left or is_end):
                    yield Document(source, held, is_chat)
                    held = ""
            if read >= share < 1:
                break
        if held:
            yield Document(source, held, is_end=False)
        return read


@dataclass(frozen=True)
class JobText:
    """The training documents of a job, and the evaluation documents where those are others'. `digest` stands for all of
    them; `empty` sources hold none."""

    train: Documents
    evaluation: Documents | None
    digest: str
    empty: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether there is no more to read."""
        return self.train.share == 1 and (self.evaluation is None or self.evaluation.share == 1)

    @property
    def names(self) -> tuple[str, ...]:
        """Those of all sources."""
        return self.train.names + (self.evaluation.names if self.evaluation else ())


def read_text(data: Data, characters: int, render: Callable[[Chat], str]) -> JobText:
    """About so many characters of training and of evaluation text, read once to know them.

    `render` makes text of a chat. Raises TextError, naming the job's key and the file at fault.
    """
    train = read_documents("data.train", data.train, data.document_separator, "train", characters, render)
    digest, empty = _looked_through(train, data.append_eos)
    source = data.evaluation or ("stdlib" if data.train == "stdlib" else None)
    if source is None:
        return JobText(train, None, digest, empty)
    evaluation = read_documents("data.evaluation", source, data.document_separator, "heldout", characters, render)
    names = tuple(f"{name} (data.evaluation)" if name in train.names else name for name in evaluation.names)
    evaluation = replace(evaluation, names=names)
    other, more = _looked_through(evaluation, data.append_eos)
    return JobText(train, evaluation, digest + other, empty + more)


def read_documents(
    key: str,
    source: Source,
    separator: str | None,
    part: Literal["train", "heldout"],
    characters: int,
    render: Callable[[Chat], str],
) -> Documents:
    """The documents of a source of the job, stripped: all, or where there are many more, about so many characters.

    `part` is which of the standard library's files; `render` makes text of a chat. Raises TextError, naming the job's
    `key` and the file at fault.
    """
    try:
        sources = _sources(source, part)
        size = sum(part.size for _, parts in sources for part in parts)
    except TextError as error:
        raise TextError(f"{key}: {error}") from error
    share = min(1.0, characters / size) if size else 1.0
    names, parts = zip(*sources, strict=True)
    return Documents(key, names, share, parts, separator, render)


def _looked_through(documents: Documents, with_ends: bool) -> tuple[str, tuple[str, ...]]:
    """The digest of documents, `with_ends` of where they end too, and the sources that hold no text, where all was
    read. Raises TextError where none does."""
    found = hashlib.blake2b(json.dumps([documents.names, documents.share]).encode(), digest_size=16)
    filled = set()
    for document in documents:
        text = document.text.encode()
        found.update(b"%d %d %d " % (document.source, document.is_chat, len(text)))
        found.update(text)
        if with_ends:
            found.update(b" %d " % document.is_end)
        filled.add(document.source)
    empty = tuple(name for source, name in enumerate(documents.names) if source not in filled)
    if not filled and documents.share == 1:
        raise TextError(f"{documents.key}: there is no text in {', '.join(empty[:5])}")
    return found.hexdigest(), empty if documents.share == 1 else ()


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
