"""A job's sets of tokens: from a folder of its home where the same text became tokens before, else drawn into one.

A folder is named by the digest of the text and of all that decides its tokens; it appears when it is whole. Any of them
may be removed: the next search draws it again.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from filelock import FileLock

from nas.errors import TextError
from nas.job.data import Data
from nas.job.digest import digest
from nas.text.chats import rendered
from nas.text.drawing import draw_sets, wanted_tokens
from nas.text.sources import JobText, read_text
from nas.text.tokens import Tokens, read_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Part of the name of every folder: raise it when the same text would become other sets.
_VERSION = 1
# How much text to read: more than most tokenizers need, and of small text all. Where it is too little, more is read.
_READ_CHARACTERS_PER_TOKEN = 6
_READ_CHARACTERS = 1 << 24
_READ_MORE = 4


@dataclass(frozen=True)
class TokenFolder:
    """Where sets are kept, a folder that all nodes see, and the digest of the tokenizer that makes them."""

    path: Path
    tokenizer: str

    def folder(self, data: Data, text: JobText, vocabulary: int) -> Path:
        """That of the sets that `data` asks for of a text."""
        asked = wanted_tokens(data) | {"calibration": data.calibration_tokens}
        under = [self.tokenizer, vocabulary, data.sequence_length, asked, text.digest]
        under += ["append_eos"] if data.append_eos else []
        return self.path / digest(_VERSION, *under)


def load_tokens(
    data: Data, tokenizer: "PreTrainedTokenizerBase", vocabulary: int, kept: TokenFolder | None = None
) -> Tokens:
    """The four sets that `data` asks for, the same on every run and every machine.

    `vocabulary` is the parent's number of embeddings. The sets are mapped from their files in `kept`; None: they are
    held in memory. Raises TextError for text that is missing, unreadable or too short, for a chat that the parent has
    no template for, for a tokenizer without the EOS token that is to be appended, and for token ids beyond
    `vocabulary`.
    """
    if data.append_eos and tokenizer.eos_token_id is None:
        raise TextError(
            "data.append_eos: the parent's tokenizer has no EOS token; name it in its tokenizer_config.json "
            "(eos_token), or leave data.append_eos out"
        )
    characters = max(_READ_CHARACTERS, _READ_CHARACTERS_PER_TOKEN * sum(wanted_tokens(data).values()))
    while True:
        text = read_text(data, characters, partial(rendered, tokenizer=tokenizer))
        draw = partial(draw_sets, data, text, tokenizer, vocabulary)
        tokens = _held(data, draw) if kept is None else _kept(data, draw, kept.folder(data, text, vocabulary))
        if tokens is not None:
            return tokens
        characters *= _READ_MORE


_Draw = Callable[[Path], bool]
"""Fills an empty folder with sets; False: more text must be read."""


def _held(data: Data, draw: _Draw) -> Tokens | None:
    with TemporaryDirectory() as folder:
        return read_tokens(Path(folder), data, is_kept=False) if draw(Path(folder)) else None


def _kept(data: Data, draw: _Draw, folder: Path) -> Tokens | None:
    too_short = folder.with_suffix(".short")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir() and not too_short.exists():
            filling = folder.with_name(f".drawing-{folder.name}")
            shutil.rmtree(filling, ignore_errors=True)  # a killed process may have left it
            filling.mkdir()
            try:
                if draw(filling):
                    filling.rename(folder)
                else:
                    too_short.touch()
            except OSError as error:
                error.filename = error.filename or str(folder)  # a full disk names no file
                raise
            finally:
                shutil.rmtree(filling, ignore_errors=True)
    return read_tokens(folder, data, is_kept=True) if folder.is_dir() else None
