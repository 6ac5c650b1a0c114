"""Four sets of sequences of token ids, none of which has seen another's text, and how they came about.

They lie in a folder, which `nas/text/drawing.py` fills and this file reads. Knows neither text nor tokenizer.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nas.job.data import Data
from nas.text.token_files import Ids, TokenFile

Split = Literal["calibration", "distillation", "score", "evaluation"]
SPLITS: tuple[Split, ...] = ("calibration", "distillation", "score", "evaluation")
DRAWN: tuple[Split, ...] = ("distillation", "score", "evaluation")
"""Those that are drawn; calibration is the head of distillation."""

# The sources that the summary names; the rest are counted.
_SOURCES_SHOWN = 8
_NAME_CHARACTERS = 40
_RECORD = "tokens.json"


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
    the three got from it; `empty` sources hold no text. `share_read` of the training text was read, its head. `files`
    are the sets where they lie in a home; none where they lie nowhere.
    """

    calibration: Ids
    distillation: Ids
    score: Ids
    evaluation: Ids
    sources: Mapping[str, Mapping[Split, int]]
    empty: tuple[str, ...]
    dropped: Dropped
    share_read: float
    digests: Mapping[Split, str]
    files: Mapping[Split, TokenFile]

    def digest(self, split: Split) -> str:
        """The digest of one set, as `token_files.digest_of` has it."""
        return self.digests[split]

    def describe(self) -> str:
        """A table: a line for each source, those that give most first, and one for all; then what was left out."""
        rows = [(name, [tokens[split] for split in DRAWN]) for name, tokens in self.sources.items()]
        rows.sort(key=lambda row: (-sum(row[1]), row[0]))
        if len(rows) > _SOURCES_SHOWN + 1:
            shown = min(_SOURCES_SHOWN, sum(any(tokens) for _, tokens in rows))
            rest = [tokens for _, tokens in rows[shown:]]
            rows[shown:] = [(f"{len(rest):,} more", [sum(column) for column in zip(*rest, strict=True)])]
        sets: list[Ids] = [getattr(self, split) for split in DRAWN]
        if len(rows) > 1:
            rows.append((f"all {len(self.sources):,}", [ids.size for ids in sets]))
        told = [(_shortened(name), [f"{count:,}" if count else "-" for count in counts]) for name, counts in rows]
        table: list[tuple[str, list[str]]] = [("tokens from", [*DRAWN]), *told]
        width = max(len(name) for name, _ in table)
        lines = [f"{name:<{width}}" + "".join(f"{cell:>15}" for cell in cells) for name, cells in table]
        lines.append(f"in sequences of {self.score.shape[1]:,} tokens; {self.dropped}")
        if self.share_read < 1:
            lines.append(f"there is more than enough text: the first {self.share_read:.1%} of each source was read")
        if self.empty:
            lines.append(f"no text in {listed(self.empty)}")
        return "\n".join(lines)


def set_file(folder: Path, split: Split) -> Path:
    """The file of a set that is drawn."""
    return folder / f"{split}.npy"


def write_record(
    folder: Path,
    sources: Mapping[str, Mapping[Split, int]],
    empty: Sequence[str],
    dropped: Dropped,
    share_read: float,
    digests: Mapping[Split, str],
) -> None:
    """Write how the sets of a folder came about, beside their files."""
    record = {"sources": sources, "empty": empty, "dropped": vars(dropped), "share_read": share_read}
    (folder / _RECORD).write_text(json.dumps(record | {"digests": digests}, indent=1), encoding="utf-8")


def read_tokens(folder: Path, data: Data, is_kept: bool) -> Tokens:
    """The sets of a folder that was filled for `data`: its files are mapped, or read whole where it is not kept."""
    record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    head = data.calibration_tokens // data.sequence_length
    files = {split: TokenFile(set_file(folder, split)) for split in DRAWN}
    files["calibration"] = TokenFile(set_file(folder, "distillation"), head)
    sets = {split: file.opened() if is_kept else file.opened().copy() for split, file in files.items()}
    for ids in sets.values():
        ids.flags.writeable = False
    return Tokens(
        **sets,
        sources={name: Counter(tokens) for name, tokens in record["sources"].items()},
        empty=tuple(record["empty"]),
        dropped=Dropped(**record["dropped"]),
        share_read=record["share_read"],
        digests=record["digests"],
        files=files if is_kept else {},
    )


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - _SOURCES_SHOWN:,} more" if len(names) > _SOURCES_SHOWN else ""
    return ", ".join(names[:_SOURCES_SHOWN]) + more


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else f"...{name[3 - _NAME_CHARACTERS :]}"
