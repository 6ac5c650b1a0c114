"""The table of all export formats."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from blocklib.block import Choice
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from nas.errors import UnsupportedExportError
from nas.export.decilm import check_decilm, export_decilm
from nas.export.exported import Exported
from nas.export.gguf import check_gguf, export_gguf
from nas.export.hf import export_hf
from nas.export.parent_settings import ParentSettings
from nas.export.plain import check_plain, export_plain

Exporter = Callable[[PuzzleNasForCausalLM, PreTrainedTokenizerBase, Path, str, ParentSettings | None], Exported]
"""Takes the child, its tokenizer, the folder to write, the card as Markdown, and the settings in the parent's files,
which the child must keep; None: they are not compared."""

FORMATS: dict[str, Exporter] = {
    "hf": export_hf,
    "decilm": export_decilm,
    "gguf": export_gguf,
    "plain": export_plain,
}


@dataclass(frozen=True)
class Target:
    """A format, and the type of the weights in it. `precision` is the type of most matrices of a GGUF file; None: what
    the scenario serves in, if llama.cpp serves, else f16. `dtype` is the type in other formats; None: what the scenario
    serves in."""

    format: str
    precision: str | None = None
    dtype: str | None = None

    def __str__(self) -> str:
        return "-".join(part for part in (self.format, self.precision, self.dtype) if part is not None)


def check_format(format: str, choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
    """Raise UnsupportedExportError if the format cannot carry a child of such choices. This check comes before any
    work."""
    if format == "decilm":
        check_decilm(choices, config)
    if format == "gguf":
        check_gguf(choices, config)
    if format == "plain":
        check_plain(choices, config)


def exporter(target: Target) -> Exporter:
    """The function that writes it. Raises UnsupportedExportError for a format that there is not, and for a precision
    beside another format than GGUF."""
    format, precision = target.format, target.precision
    if target.dtype is not None and format == "gguf":
        raise UnsupportedExportError(f"dtype {target.dtype}: a GGUF file has a precision instead, such as q8_0")
    if format not in FORMATS:
        raise UnsupportedExportError(f"there is no export format {format!r}; formats: {', '.join(FORMATS)}")
    if precision is None:
        return FORMATS[format]
    if format != "gguf":
        raise UnsupportedExportError(
            f"precision {precision} is one of format gguf; {format} has the type that the scenario serves in"
        )
    return partial(export_gguf, precision=precision)
