"""Text into tokens: four sets of sequences, none of which has seen another's text.

Knows how many tokens are wanted, and in what order the sets are drawn:

    evaluation     text of its own, or the first pieces of the training text
    score          the next pieces of the training text
    distillation   the pieces after those; the calibration tokens are its head

A repeated document counts once. If it is evaluated on, neither it nor a paragraph of it is trained on.
`nas/text/sources.py` reads the text; `nas/text/pieces.py` says what a piece is, and in what order pieces stand. This
file knows nothing of the parent but its tokenizer and its vocabulary.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from nas.errors import TextError
from nas.job.sections import Data
from nas.text.pieces import Piece, key_of, paragraph_keys, pieces_of, without_copies
from nas.text.sources import Documents, read_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Split = Literal["calibration", "distillation", "score", "evaluation"]
SPLITS: tuple[Split, ...] = ("calibration", "distillation", "score", "evaluation")
_DRAWN: tuple[Split, ...] = ("distillation", "score", "evaluation")

# A long document is cut into pieces of about two sequences: many fill a set, and a sequence holds few beginnings.
_PIECE_CHARACTERS_PER_TOKEN = 8
# How much text to tokenise at once for the tokens still wanted, and at most: a tokenizer holds hundreds of bytes a
# token until it is done. Sets pace and memory only.
_USUAL_CHARACTERS_PER_TOKEN = 4
_AT_ONCE_CHARACTERS = 1 << 21
# How much text to read: more than most tokenizers need, and of small text all. Where it is too little, more is read.
_READ_CHARACTERS_PER_TOKEN = 6
_READ_CHARACTERS = 1 << 24
_READ_MORE = 4
# The sources that the summary names; the rest are counted.
_SOURCES_SHOWN = 8
_NAME_CHARACTERS = 40


def digest_of(ids: NDArray[np.int32]) -> str:
    """Sixteen hex digits that stand for token ids in keys: equal where shape and ids are."""
    return hashlib.sha256(f"{ids.shape}".encode() + ids.astype("<i4").tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Dropped:
    """Copies that are in no set: `repeated` documents and pieces of the training text, of which one stays; `evaluated`
    documents, which are evaluated on; single `paragraphs` of the rest that are evaluated on or scored on."""

    repeated: int = 0
    evaluated: int = 0
    paragraphs: int = 0

    def __str__(self) -> str:
        counts = {"repeated": self.repeated, "evaluated on": self.evaluated, "in single paragraphs": self.paragraphs}
        told = [f"{count:,} {what}" for what, count in counts.items() if count]
        return f"dropped as copies: {', '.join(told) or 'none'}"


@dataclass(frozen=True, eq=False)
class Tokens:
    """The sets, each int32 [sequences, sequence_length] and read-only, and how they came about.

    `calibration` is the head of `distillation`; the others are apart. `sources` says by source how many tokens each of
    the three got from it; `empty` sources hold no text. `share_read` of the training text was read, its head.
    """

    calibration: NDArray[np.int32]
    distillation: NDArray[np.int32]
    score: NDArray[np.int32]
    evaluation: NDArray[np.int32]
    sources: Mapping[str, Mapping[Split, int]]
    empty: tuple[str, ...]
    dropped: Dropped
    share_read: float

    def digest(self, split: Split) -> str:
        """The digest of one set, see `digest_of`."""
        return self._digests[split]

    @cached_property
    def _digests(self) -> dict[Split, str]:
        return {split: digest_of(getattr(self, split)) for split in SPLITS}

    def describe(self) -> str:
        """A table: a line for each source, those that give most first, and one for all; then what was left out."""
        rows = [(name, [tokens[split] for split in _DRAWN]) for name, tokens in self.sources.items()]
        rows.sort(key=lambda row: (-sum(row[1]), row[0]))
        if len(rows) > _SOURCES_SHOWN + 1:
            shown = min(_SOURCES_SHOWN, sum(any(tokens) for _, tokens in rows))
            rest = [tokens for _, tokens in rows[shown:]]
            rows[shown:] = [(f"{len(rest):,} more", [sum(column) for column in zip(*rest, strict=True)])]
        sets: list[NDArray[np.int32]] = [getattr(self, split) for split in _DRAWN]
        if len(rows) > 1:
            rows.append((f"all {len(self.sources):,}", [ids.size for ids in sets]))
        told = [(_shortened(name), [f"{count:,}" if count else "-" for count in counts]) for name, counts in rows]
        table: list[tuple[str, list[str]]] = [("tokens from", [*_DRAWN]), *told]
        width = max(len(name) for name, _ in table)
        lines = [f"{name:<{width}}" + "".join(f"{cell:>15}" for cell in cells) for name, cells in table]
        lines.append(f"in sequences of {self.score.shape[1]:,} tokens; {self.dropped}")
        if self.share_read < 1:
            lines.append(f"there is more than enough text: the first {self.share_read:.1%} of each source was read")
        if self.empty:
            lines.append(f"no text in {_listed(self.empty)}")
        return "\n".join(lines)


def load_tokens(data: Data, tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> Tokens:
    """The four sets that `data` asks for, the same on every run and every machine.

    Each piece is opened by the tokenizer's BOS token, where it has one; pieces follow each other without padding, and a
    set is cut into sequences, the ragged tail dropped. `vocabulary` is the parent's number of embeddings.

    Raises TextError for text that is missing, unreadable or too short, and for token ids beyond `vocabulary`.
    """
    wanted: dict[Split, int] = {split: _wanted(data, split) for split in _DRAWN}
    characters = max(_READ_CHARACTERS, _READ_CHARACTERS_PER_TOKEN * sum(wanted.values()))
    while True:
        text = _read(data, characters)
        train = _Supply(text.train, data.sequence_length, tokenizer)
        apart = text.evaluation and _Supply(text.evaluation, data.sequence_length, tokenizer)
        sets: dict[Split, _DrawnPieces] = {}
        for split in reversed(_DRAWN):
            supply = apart if split == "evaluation" and apart else train
            sets[split] = supply.draw(wanted[split])
        short = [split for split in _DRAWN if len(sets[split].ids) < wanted[split]]
        if not short or text.whole:
            break
        characters *= _READ_MORE
    dropped = Dropped(text.repeated + train.repeated, text.evaluated, text.paragraphs + train.paragraphs)
    if short:
        apart_alone = short == ["evaluation"] and apart is not None
        asked = {split: wanted[split] for split in wanted if apart is None or (split == "evaluation") == apart_alone}
        raise _too_short("data.evaluation" if apart_alone else "data.train", asked, sets, dropped)
    sources: dict[str, Counter[Split]] = {name: Counter() for name in text.names}
    for split, drawn in sets.items():
        for name, tokens in drawn.tokens_by_source(wanted[split]).items():
            sources[name][split] = tokens
    ids = {split: _sequences(data, split, drawn.ids[: wanted[split]], vocabulary) for split, drawn in sets.items()}
    calibration = ids["distillation"][: data.calibration_tokens // data.sequence_length]
    return Tokens(calibration, **ids, sources=sources, empty=text.empty, dropped=dropped, share_read=text.train.share)


# --- sets -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _DrawnPieces:
    """The tokens of whole pieces, and for each piece its source and how many it gave."""

    ids: NDArray[np.int32]
    pieces: tuple[tuple[str, int], ...]

    def tokens_by_source(self, first: int) -> Counter[str]:
        """How many of the first tokens each source gave."""
        counts: Counter[str] = Counter()
        for name, tokens in self.pieces:
            counts[name] += min(tokens, first)
            first -= min(tokens, first)
        return counts


class _Supply:
    """The pieces of some documents, from which one set after the other is drawn; no set sees what one before it saw."""

    def __init__(self, documents: Documents, sequence_length: int, tokenizer: "PreTrainedTokenizerBase"):
        self._names = documents.names
        self._tokenizer = tokenizer
        self._pieces, self.repeated = pieces_of(documents.texts, _PIECE_CHARACTERS_PER_TOKEN * sequence_length)
        self._next = 0
        self._seen: set[bytes] = set()
        self.paragraphs = 0
        """How many were left out, since a set drawn before holds them."""

    def draw(self, wanted: int) -> _DrawnPieces:
        """The next pieces that hold so many tokens, or all that are left where they hold fewer."""
        ids: list[NDArray[np.int32]] = []
        held = 0
        drawn: list[tuple[str, int]] = []
        seen: set[bytes] = set()
        while held < wanted and self._next < len(self._pieces):
            batch = self._batch(min(_USUAL_CHARACTERS_PER_TOKEN * (wanted - held), _AT_ONCE_CHARACTERS))
            texts = [without_copies(piece.text, self._seen) for piece in batch]
            for piece, (text, dropped), tokens in zip(
                batch, texts, self._tokens([text for text, _ in texts]), strict=True
            ):
                if held >= wanted:
                    break
                ids.append(np.array(tokens, dtype=np.int32))
                held += len(tokens)
                drawn.append((self._names[piece.source], len(tokens)))
                seen.update(paragraph_keys(text))
                self.paragraphs += dropped
                self._next += 1
        self._seen |= seen
        return _DrawnPieces(np.concatenate([np.zeros(0, dtype=np.int32), *ids]), tuple(drawn))

    def _batch(self, characters: int) -> list[Piece]:
        """The next pieces that hold about so many characters: at least one."""
        end = self._next
        while end < len(self._pieces) and characters > 0:
            characters -= len(self._pieces[end].text)
            end += 1
        return self._pieces[self._next : end]

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, after one BOS token if the tokenizer has one; none for an empty text."""
        bos = self._tokenizer.bos_token_id
        opened = []
        for tokens in self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            # Text may spell the BOS token itself, and some tokenizers add it whatever they are told.
            first = next((index for index, token in enumerate(tokens) if token != bos), len(tokens))
            opened.append(tokens if bos is None else [bos, *tokens[first:]] if first < len(tokens) else [])
        return opened


def _wanted(data: Data, split: Split) -> int:
    """The tokens of a set: what was asked for, less what fills no sequence."""
    asked: int = getattr(data, f"{split}_tokens")
    return asked - asked % data.sequence_length


def _sequences(data: Data, split: Split, ids: NDArray[np.int32], vocabulary: int) -> NDArray[np.int32]:
    """A whole set, read-only [sequences, sequence_length]."""
    if ids.max() >= vocabulary:
        raise TextError(
            f"data.{split}_tokens: the tokenizer gives token {ids.max()}, and the parent has {vocabulary} embeddings; "
            "this tokenizer does not belong to this parent"
        )
    ids.flags.writeable = False
    return ids.reshape(-1, data.sequence_length)


def _too_short(key: str, asked: Mapping[Split, int], sets: Mapping[Split, _DrawnPieces], dropped: Dropped) -> TextError:
    """All text of `key` was drawn and is too little: by how much, and what each source holds."""
    held: Counter[str] = Counter()
    for split in asked:
        held.update(sets[split].tokens_by_source(len(sets[split].ids)))
    wanted = ", ".join(f"data.{split}_tokens {tokens:,}" for split, tokens in asked.items())
    if not held:
        return TextError(f"{key}: nothing is left of it to draw from; {dropped}")
    holdings = _listed([f"{name} {tokens:,}" for name, tokens in held.most_common()])
    return TextError(
        f"{key} holds {held.total():,} tokens, and {sum(asked.values()):,} are asked for ({wanted}); give more text, "
        f"or ask for fewer tokens. By source: {holdings}; {dropped}"
    )


# --- documents ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _DistinctText:
    """Training documents without copies, and the evaluation documents where those are others'."""

    train: Documents
    evaluation: Documents | None
    empty: tuple[str, ...]
    repeated: int
    evaluated: int
    paragraphs: int

    @property
    def whole(self) -> bool:
        return self.train.share == 1 and (self.evaluation is None or self.evaluation.share == 1)

    @property
    def names(self) -> tuple[str, ...]:
        return self.train.names + (self.evaluation.names if self.evaluation else ())


def _read(data: Data, characters: int) -> _DistinctText:
    """About so many characters of training and of evaluation text, each training document once."""
    train = read_documents("data.train", data.train, data.document_separator, "train", characters)
    source = data.evaluation or ("stdlib" if data.train == "stdlib" else None)
    if source is None:
        return _without_copies(train, None)
    evaluation = read_documents("data.evaluation", source, data.document_separator, "heldout", characters)
    names = (f"{name} (data.evaluation)" if name in train.names else name for name in evaluation.names)
    return _without_copies(train, replace(evaluation, names=tuple(names)))


def _without_copies(train: Documents, evaluation: Documents | None) -> _DistinctText:
    """The training documents, each once, without those and without the paragraphs that are evaluated on."""
    known: set[bytes] = set()
    for text in chain.from_iterable(evaluation.texts if evaluation else ()):
        known.add(key_of(text))
        known.update(paragraph_keys(text))
    seen: set[bytes] = set()
    repeated = evaluated = paragraphs = 0
    kept: list[list[str]] = [[] for _ in train.texts]
    for texts, new in zip(train.texts, kept, strict=True):
        for text in texts:
            key = key_of(text)
            if key in seen:
                repeated += 1
            elif key in known:
                evaluated += 1
            else:
                rest, dropped = without_copies(text, known)
                new.append(rest)
                paragraphs += dropped
            seen.add(key)
    empty = train.empty + (evaluation.empty if evaluation else ())
    return _DistinctText(replace(train, texts=tuple(kept)), evaluation, empty, repeated, evaluated, paragraphs)


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else f"...{name[3 - _NAME_CHARACTERS :]}"


def _listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - _SOURCES_SHOWN:,} more" if len(names) > _SOURCES_SHOWN else ""
    return ", ".join(names[:_SOURCES_SHOWN]) + more
