"""Documents into pieces: what is set aside whole, what counts as a copy, and in what order pieces are drawn.

A piece is a short document, or a part of a long one that ends where a paragraph does, or else a line or a word. All
pieces stand in one order. Every beginning of it holds each source in the share that the source has of the text. So
training, score and evaluation text, which are drawn from it one after the other, are of the same kind.

Copies are found whatever their spaces, line ends and Unicode forms. Nothing here knows files or tokens.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Set

import numpy as np
from numpy.typing import NDArray

# A paragraph, or a line, that is shorter may stand in two texts by chance.
_LONG_CHARACTERS = 100
_BLANK_LINES = re.compile(r"(\n[^\S\n]*\n\s*)")
# Soft hyphens, joiners, marks of direction and of byte order: characters that nobody sees.
_UNSEEN = re.compile("[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")


def key_of(text: str) -> bytes:
    """Sixteen bytes, equal for texts that differ in white space, in invisible characters and in Unicode form alone."""
    return _digest(_comparable(text))


def paragraph_keys(text: str) -> Iterator[bytes]:
    """The keys of a text's long paragraphs, between blank lines, and of its long lines."""
    for block in _BLANK_LINES.split(text)[::2]:
        for part in dict.fromkeys((block, *block.split("\n"))):
            if key := _key_where_long(part):
                yield key


def without_copies(text: str, known: Set[bytes]) -> tuple[str, int]:
    """The text without the long paragraphs and lines whose keys are known, and how many those were."""
    if not known:
        return text, 0
    kept, dropped = "", 0
    blocks = _BLANK_LINES.split(text)
    for block, gap in zip(blocks[::2], [*blocks[1::2], ""], strict=True):
        if _key_where_long(block) in known:
            dropped += 1
            continue
        lines = block.split("\n")
        new = [line for line in lines if _key_where_long(line) not in known] if len(lines) > 1 else lines
        dropped += len(lines) - len(new)
        if new:
            kept += "\n".join(new) + gap
    return (kept, dropped) if dropped else (text, 0)


def cut(text: str, characters: int) -> Iterator[str]:
    """Consecutive parts of about so many characters, from half of them to twice as many."""
    start = 0
    while len(text) - start > 2 * characters:
        least, most = start + characters // 2, start + characters
        ends = (text.rfind(end, least, most) + len(end) for end in ("\n\n", "\n", ". ", " ") if end in text[least:most])
        end = next(ends, most)
        yield text[start:end]
        start = end
    yield text[start:]


def drawing_order(
    keys: NDArray[np.uint64], sources: NDArray[np.int32], characters: NDArray[np.int32]
) -> NDArray[np.intp]:
    """The indices of pieces in the order they are drawn in; of copies, the first piece alone.

    `keys` is [pieces, 2], the two halves of each key; `sources` and `characters` are one number for each piece. The
    order depends on nothing but the texts. Within a source it is that of the pieces' keys. Laid end to end they reach
    from 0 to 1; at one place within each, the same for all of a source, sources are merged.
    """
    if not len(keys):
        return np.zeros(0, dtype=np.intp)
    high, low = keys.T
    order = np.lexsort((low, high))  # copies stay in the order they came in
    order = order[np.concatenate([[True], (keys[order[1:]] != keys[order[:-1]]).any(axis=1)])]
    order = order[np.argsort(sources[order], kind="stable")]
    starts = np.flatnonzero(np.diff(sources[order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    sizes = characters[order].astype(np.int64)
    ends = np.cumsum(sizes)
    before = ends - sizes - np.repeat(ends[starts] - sizes[starts], counts)
    # At random, and one of its own for each source; the order goes by the first half of the keys.
    within = np.repeat(low[order[starts]] / 2.0**64, counts)
    places = (before + within * sizes) / np.repeat(np.add.reduceat(sizes, starts), counts)
    drawn: NDArray[np.intp] = order[np.lexsort((low[order], high[order], places))]
    return drawn


def _key_where_long(text: str) -> bytes | None:
    if len(text) < _LONG_CHARACTERS or len(comparable := _comparable(text)) < _LONG_CHARACTERS:
        return None
    return _digest(comparable)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _comparable(text: str) -> str:
    if not text.isascii():
        text = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    return " ".join(text.split())
