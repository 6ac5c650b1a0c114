"""Text into tokens: four sets of sequences, none of which has seen another's documents where it must not.

Knows documents, their order and the split. Documents stand in the order of the hashes of their texts, so nothing
depends on how files are named or listed:

    evaluation     documents of their own, or the first tenth of the training documents
    score          the next tenth, or as many as it takes
    distillation   the rest; the calibration tokens are its head

A repeated document counts once, and one that is evaluated on is never trained on. Within a set, long documents are read
in parts, shuffled the same way. The text is held in memory, but only as much is tokenised as the sets ask for. Does not
know the parent, beyond its tokenizer and vocabulary.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from nas.sections import Data, HubDataset, Source
from nas.stdlib_text import stdlib_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Split = Literal["calibration", "distillation", "score", "evaluation"]
SPLITS: tuple[Split, ...] = ("calibration", "distillation", "score", "evaluation")

# The share of the documents held out for evaluation, and of those left, set aside for scores.
_SET_ASIDE = 0.1
# Documents longer than this are read in parts, about four sequences long, so that a small set sees many documents.
_PART_CHARACTERS_PER_TOKEN = 16
# How much text to tokenise at once for the tokens still wanted; sets the pace only.
_USUAL_CHARACTERS_PER_TOKEN = 4


def digest_of(ids: NDArray[np.int32]) -> str:
    """Sixteen hex digits that stand for token ids in keys: equal where shape and ids are."""
    return hashlib.sha256(f"{ids.shape}".encode() + ids.astype("<i4").tobytes()).hexdigest()[:16]


class TextError(ValueError):
    """The text cannot be read, or is too short for what is asked of it."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The sets, each int32 [sequences, sequence_length] and read-only, and how they came about.

    `calibration` is the head of `distillation`; the others are apart. `documents` counts those that each of the three
    draws from. `repeated` training documents were dropped as exact copies of
    another, `leaked` ones as exact copies of an evaluation document.
    """

    calibration: NDArray[np.int32]
    distillation: NDArray[np.int32]
    score: NDArray[np.int32]
    evaluation: NDArray[np.int32]
    documents: Mapping[Split, int]
    repeated: int
    leaked: int

    def digest(self, split: Split) -> str:
        """Of one set, see `digest_of`."""
        return self._digests[split]

    @cached_property
    def _digests(self) -> dict[Split, str]:
        return {split: digest_of(getattr(self, split)) for split in SPLITS}

    def describe(self) -> str:
        """A line per set that stands by itself, and one for the documents dropped."""
        lines = []
        for split, count in self.documents.items():
            ids: NDArray[np.int32] = getattr(self, split)
            lines.append(f"{split}: {ids.size:,} tokens ({len(ids):,} x {ids.shape[1]}) out of {count:,} documents")
        return "\n".join([*lines, f"dropped: {self.repeated:,} repeated documents, {self.leaked:,} evaluated on"])


def load_tokens(data: Data, tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> Tokens:
    """The four sets that `data` asks for, the same on every run and every machine.

    Each part is opened by the tokenizer's BOS token, where it has one; parts follow each other without padding, and a
    set is cut into sequences, the ragged tail dropped. `vocabulary` is the parent's number of embeddings.

    Raises TextError for text that is missing, empty, not UTF-8 or too short, and for token ids beyond `vocabulary`.
    """
    train, evaluation, repeated, leaked = _split(data)
    scored = step = math.ceil(len(train) * _SET_ASIDE)
    while scored < len(train) and len(_head(data, "score", train[:scored], tokenizer)) < _wanted(data, "score"):
        scored += step
    documents: dict[Split, list[str]] = {
        "evaluation": evaluation,
        "score": train[:scored],
        "distillation": train[scored:],
    }
    sets = {split: _sequences(data, split, texts, tokenizer, vocabulary) for split, texts in documents.items()}
    calibration = sets["distillation"][: data.calibration_tokens // data.sequence_length]
    counts = {split: len(texts) for split, texts in documents.items()}
    return Tokens(calibration, **sets, documents=counts, repeated=repeated, leaked=leaked)


# --- tokens ---------------------------------------------------------------------------------------------------------


def _parts(documents: list[str], characters: int) -> list[str]:
    """The documents, long ones cut into parts of at most so many characters, in the order of the parts' hashes."""
    parts = [part for text in documents for part in _cut(text, characters) if part.strip()]
    return sorted(parts, key=_hash)


def _cut(text: str, characters: int) -> Iterator[str]:
    """Consecutive parts, each ending with a line, or else a word, unless that leaves it less than half as long."""
    start = 0
    while len(text) - start > characters:
        least, most = start + characters // 2, start + characters
        end = text.rfind("\n", least, most) + 1 or text.rfind(" ", least, most) + 1 or most
        yield text[start:end]
        start = end
    yield text[start:]


def _wanted(data: Data, split: Split) -> int:
    """The tokens of a set: what was asked for, less what fills no sequence."""
    asked: int = getattr(data, f"{split}_tokens")
    return asked - asked % data.sequence_length


def _sequences(
    data: Data, split: Split, documents: list[str], tokenizer: "PreTrainedTokenizerBase", vocabulary: int
) -> NDArray[np.int32]:
    """A whole set, read-only [sequences, sequence_length]. Raises TextError where the documents do not fill it."""
    ids, wanted = _head(data, split, documents, tokenizer), _wanted(data, split)
    if len(ids) < wanted:
        source = "data.evaluation" if split == "evaluation" and data.evaluation else "data.train"
        raise TextError(
            f"data.{split}_tokens asks for {wanted:,} tokens, and the {len(documents):,} documents that {source} "
            f"leaves for it hold {len(ids):,}; give more text, ask for fewer tokens, or cut the text into more "
            "documents by data.document_separator"
        )
    if ids.max() >= vocabulary:
        raise TextError(
            f"data.{split}_tokens: the tokenizer gives token {ids.max()}, and the parent has {vocabulary} embeddings; "
            "it is not this parent's tokenizer"
        )
    ids.flags.writeable = False
    return ids.reshape(-1, data.sequence_length)


def _head(data: Data, split: Split, documents: list[str], tokenizer: "PreTrainedTokenizerBase") -> NDArray[np.int32]:
    """The first tokens of the documents, as many as the set wants, or all where there are fewer."""
    parts, wanted = _parts(documents, _PART_CHARACTERS_PER_TOKEN * data.sequence_length), _wanted(data, split)
    bos = tokenizer.bos_token_id
    ids: list[int] = []
    start = 0
    while len(ids) < wanted and start < len(parts):
        batch = _batch(parts, start, _USUAL_CHARACTERS_PER_TOKEN * (wanted - len(ids)))
        for tokens in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            # Text may spell the BOS token itself, and some tokenizers add it whatever they are told.
            first = next((index for index, token in enumerate(tokens) if token != bos), len(tokens))
            ids += tokens if bos is None else [bos, *tokens[first:]]
        start += len(batch)
    return np.array(ids[:wanted], dtype=np.int32)


def _batch(parts: list[str], start: int, characters: int) -> list[str]:
    """The parts from `start` on that hold about so many characters: at least one."""
    end = start
    while end < len(parts) and characters > 0:
        characters -= len(parts[end])
        end += 1
    return parts[start:end]


# --- documents ------------------------------------------------------------------------------------------------------


def _split(data: Data) -> tuple[list[str], list[str], int, int]:
    """Training and evaluation documents in the order of their hashes; how many were repeated, how many leaked."""
    given = _documents("data.train", data.train, data.document_separator, "train")
    train = _by_hash(given)
    repeated = len(given) - len(train)
    evaluation_source = data.evaluation or ("stdlib" if data.train == "stdlib" else None)
    if evaluation_source is None:
        documents = list(train.values())
        held_out = math.ceil(len(documents) * _SET_ASIDE)
        if held_out == len(documents):
            raise TextError(
                "data.train is one document, of which no tenth can be held out; name other text under data.evaluation, "
                r'or what separates its documents under data.document_separator, such as "\n\n"'
            )
        return documents[held_out:], documents[:held_out], repeated, 0
    evaluation = _by_hash(_documents("data.evaluation", evaluation_source, data.document_separator, "heldout"))
    kept = [text for key, text in train.items() if key not in evaluation]
    return kept, list(evaluation.values()), repeated, len(train) - len(kept)


def _by_hash(documents: list[str]) -> dict[bytes, str]:
    """Each document once, by the hash of its text, in the order of the hashes."""
    return dict(sorted((_hash(text), text) for text in documents))


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _documents(key: str, source: Source, separator: str | None, part: Literal["train", "heldout"]) -> list[str]:
    """The documents of a source, stripped, without the empty ones. `part` is which of the standard library's."""
    texts = _texts(key, source, part)
    pieces = (piece.strip() for text in texts for piece in (text.split(separator) if separator else [text]))
    documents = [piece for piece in pieces if piece]
    if not documents:
        raise TextError(f"{key}: there is no text in {_named(source)}")
    return documents


def _texts(key: str, source: Source, part: Literal["train", "heldout"]) -> Iterator[str]:
    if isinstance(source, HubDataset):
        yield from _rows(key, source)
    else:
        for path in stdlib_files(part) if source == "stdlib" else source:
            yield _read(key, path)


def _read(key: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TextError(f"{key}: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is 0x{error.object[error.start]:02x}"
        raise TextError(f"{key}: {path} is not UTF-8: {byte}; convert the file, or leave it out") from error


def _rows(key: str, source: HubDataset) -> Iterator[str]:
    """The rows of a dataset's text column."""
    try:
        from datasets import exceptions, load_dataset  # type: ignore[import-untyped]
    except ImportError as error:
        raise TextError(f"{key}: a dataset takes one more library: pip install 'puzzle-nas[datasets]'") from error
    path = Path(source.dataset)
    place, file = (str(path.parent), path.name) if path.is_file() else (source.dataset, None)
    try:
        rows = load_dataset(place, source.config, data_files=file, split=source.split)
    except (OSError, ValueError, exceptions.DatasetsError) as error:
        raise TextError(f"{key}: {source.dataset}: {error}") from error
    if source.column not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise TextError(f"{key}: {source.dataset} has no column {source.column!r}; it has {columns}")
    for index, text in enumerate(rows[source.column]):
        if not isinstance(text, str):
            raise TextError(f"{key}: {source.dataset}: row {index} of {source.column!r} is no text but {text!r}")
        yield text


def _named(source: Source) -> str:
    if isinstance(source, HubDataset):
        return source.dataset
    return source if isinstance(source, str) else ", ".join(map(str, source))
