"""Text into tokens: the sets of a job, drawn one after the other from the pieces of its text.

    evaluation     text of its own, or the first pieces of the training text
    score          the next pieces of the training text
    distillation   the pieces after those; the calibration tokens are its head

A repeated document counts once. If it is evaluated on, neither it nor a paragraph of it is trained on. A chat is kept
whole, whatever it shares with others.

No text is held: `nas/text/sources.py` reads it, `nas/text/spool.py` keeps its pieces in a file, and their tokens go to
files as they come. This file knows nothing of the parent but its tokenizer and its vocabulary.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import numpy as np

from nas.errors import TextError
from nas.job.data import Data
from nas.text.pieces import key_of, paragraph_keys, without_copies
from nas.text.sources import Document, Documents, JobText
from nas.text.spool import Pieces, spooled
from nas.text.token_files import TokenWriter, digest_of
from nas.text.tokens import DRAWN, Dropped, Split, listed, set_file, write_record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A long document is cut into pieces of about two sequences: many fill a set, and a sequence holds few beginnings.
_PIECE_CHARACTERS_PER_TOKEN = 8
# How much text to tokenise at once for the tokens still wanted, and at most: a tokenizer holds hundreds of bytes a
# token until it is done. Sets pace and memory only.
_USUAL_CHARACTERS_PER_TOKEN = 4
_AT_ONCE_CHARACTERS = 1 << 21


def wanted_tokens(data: Data) -> dict[Split, int]:
    """The tokens of each set that is drawn: what was asked for, less what fills no sequence."""
    asked: dict[Split, int] = {split: getattr(data, f"{split}_tokens") for split in DRAWN}
    return {split: tokens - tokens % data.sequence_length for split, tokens in asked.items()}


def draw_sets(data: Data, text: JobText, tokenizer: "PreTrainedTokenizerBase", vocabulary: int, folder: Path) -> bool:
    """Fill an empty folder with the sets that `data` asks for; False: the text is too short, and there is more to read.

    Each piece is opened by the tokenizer's BOS token, where it has one. With `data.append_eos` its EOS token closes the
    last piece of a document; where the two are one token, the piece that follows is opened by it, and that is enough.
    Pieces follow each other without padding, and a set is cut into sequences, the ragged tail dropped. Raises TextError
    for text that is unreadable or too short, and for token ids beyond `vocabulary`.
    """
    wanted, length = wanted_tokens(data), data.sequence_length
    sets: dict[Split, _DrawnPieces] = {}
    with ExitStack() as stack:

        def supply(documents: Iterable[Document], names: tuple[str, ...]) -> _Supply:
            # Beside the sets: a system's own folder for such files may be in memory.
            file = stack.enter_context(TemporaryFile(dir=folder))
            pieces = spooled(documents, _PIECE_CHARACTERS_PER_TOKEN * length, file)
            return _Supply(names, pieces, tokenizer, data.append_eos)

        distinct = _Distinct(text.evaluation)
        train = supply(distinct.of(text.train), text.train.names)
        apart = text.evaluation and supply(text.evaluation, text.evaluation.names)
        for split in reversed(DRAWN):
            source = apart if split == "evaluation" and apart else train
            with TokenWriter(set_file(folder, split), wanted[split] // length, length) as writer:
                sets[split] = source.draw(wanted[split], writer, is_last=split == "distillation")
    short = [split for split in DRAWN if sets[split].tokens < wanted[split]]
    if short and not text.is_whole:
        return False
    dropped = Dropped(
        distinct.repeated + train.pieces.repeated, distinct.evaluated, distinct.paragraphs + train.paragraphs
    )
    if short:
        apart_alone = short == ["evaluation"] and apart is not None
        asked = {split: wanted[split] for split in wanted if apart is None or (split == "evaluation") == apart_alone}
        raise _too_short("data.evaluation" if apart_alone else "data.train", asked, sets, dropped)
    for split, drawn in sets.items():
        _check_vocabulary(split, drawn, vocabulary)
    sources: dict[str, Counter[Split]] = {name: Counter() for name in text.names}
    for split, drawn in sets.items():
        for name, tokens in drawn.first(wanted[split]).items():
            sources[name][split] = tokens
    digests: dict[Split, str] = {split: drawn.digest for split, drawn in sets.items()}
    calibration = np.load(set_file(folder, "distillation"), mmap_mode="r")[: data.calibration_tokens // length]
    write_record(
        folder, sources, text.empty, dropped, text.train.share, digests | {"calibration": digest_of(calibration)}
    )
    return True


@dataclass(frozen=True)
class _DrawnPieces:
    """A set that was drawn: how many tokens each source gave, in whole pieces, the source of the last one, the largest
    id in the set, and the digest of the set."""

    by_source: Counter[str]
    last: str
    largest: int
    digest: str

    @property
    def tokens(self) -> int:
        return self.by_source.total()

    def first(self, tokens: int) -> Counter[str]:
        """How many of the first tokens each source gave; only the last piece reaches past them."""
        return self.by_source - Counter({self.last: max(0, self.tokens - tokens)})


class _Supply:
    """The pieces of some documents, from which one set after the other is drawn; no set sees what one before it saw."""

    def __init__(self, names: tuple[str, ...], pieces: Pieces, tokenizer: "PreTrainedTokenizerBase", append_eos: bool):
        self.pieces = pieces
        self._names = names
        self._tokenizer = tokenizer
        self._bos = tokenizer.bos_token_id
        self._eos = tokenizer.eos_token_id if append_eos and tokenizer.eos_token_id != self._bos else None
        self._next = 0
        self._seen: set[bytes] = set()
        self.paragraphs = 0
        """How many were left out, since a set drawn before holds them."""

    def draw(self, wanted: int, writer: TokenWriter, is_last: bool) -> _DrawnPieces:
        """Write the next pieces that hold so many tokens, or all that are left where they hold fewer. `is_last`: no
        other set is drawn after it."""
        left, held, last = wanted, Counter[str](), ""
        seen: set[bytes] = set()
        while left > 0 and self._next < len(self.pieces):
            batch = self._batch(min(_USUAL_CHARACTERS_PER_TOKEN * left, _AT_ONCE_CHARACTERS))
            texts = [(piece.text, 0) if piece.is_chat else without_copies(piece.text, self._seen) for piece in batch]
            inner = self._tokens([text for text, _ in texts])
            for piece, (text, dropped), tokens in zip(batch, texts, inner, strict=True):
                if left <= 0:
                    break
                tokens = self._enclosed(tokens, piece.is_end)
                writer.write(np.array(tokens, dtype=np.int32))
                last = self._names[piece.source]
                held[last] += len(tokens)
                left -= len(tokens)
                if not is_last:
                    seen.update(paragraph_keys(text))
                self.paragraphs += dropped
                self._next += 1
        self._seen |= seen
        return _DrawnPieces(held, last, writer.largest, writer.digest)

    def _batch(self, characters: int) -> list[Document]:
        """The next pieces that hold about so many characters: at least one."""
        end = self._next
        while end < len(self.pieces) and characters > 0:
            characters -= self.pieces.characters(end)
            end += 1
        return [self.pieces[index] for index in range(self._next, end)]

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def _enclosed(self, tokens: list[int], is_end: bool) -> list[int]:
        """The tokens after one BOS token, and before one EOS token if a document ends with them; none for none.

        Text may spell these tokens itself, and some tokenizers add them whatever they are told.
        """
        start, end = 0, len(tokens)
        if self._bos is not None:
            while start < end and tokens[start] == self._bos:
                start += 1
        if start == end:
            return []
        opening = [] if self._bos is None else [self._bos]
        if self._eos is None or not is_end:
            return [*opening, *tokens[start:]]
        while end > start and tokens[end - 1] == self._eos:
            end -= 1
        return [*opening, *tokens[start:end], self._eos]


class _Distinct:
    """Documents, each once, without those and without the paragraphs that are evaluated on; and how many were left
    out."""

    def __init__(self, evaluation: Documents | None):
        self._known: set[bytes] = set()
        for document in evaluation or ():
            self._known.add(key_of(document.text))
            self._known.update(paragraph_keys(document.text))
        self.repeated = self.evaluated = self.paragraphs = 0

    def of(self, documents: Documents) -> Iterator[Document]:
        seen: set[bytes] = set()
        for document in documents:
            key = key_of(document.text)
            if key in seen:
                self.repeated += 1
            elif key in self._known:
                self.evaluated += 1
            elif document.is_chat:
                yield document
            else:
                text, dropped = without_copies(document.text, self._known)
                self.paragraphs += dropped
                yield replace(document, text=text)
            seen.add(key)


def _check_vocabulary(split: Split, drawn: _DrawnPieces, vocabulary: int) -> None:
    if drawn.largest >= vocabulary:
        raise TextError(
            f"data.{split}_tokens: the tokenizer gives token {drawn.largest}, and the parent has {vocabulary} "
            "embeddings; this tokenizer does not belong to this parent"
        )


def _too_short(key: str, asked: Mapping[Split, int], sets: Mapping[Split, _DrawnPieces], dropped: Dropped) -> TextError:
    """All text of `key` was drawn and is too little: by how much, and what each source holds."""
    held: Counter[str] = Counter()
    for split in asked:
        held.update(sets[split].by_source)
    wanted = ", ".join(f"data.{split}_tokens {tokens:,}" for split, tokens in asked.items())
    if not held:
        return TextError(f"{key}: nothing is left of it to draw from; {dropped}")
    holdings = listed([f"{name} {tokens:,}" for name, tokens in held.most_common()])
    return TextError(
        f"{key} holds {held.total():,} tokens, and {sum(asked.values()):,} are asked for ({wanted}); give more text, "
        f"or ask for fewer tokens. By source: {holdings}; {dropped}"
    )
