"""The table of all export formats."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from blocklib.block import Choice
from blocklib.formats.compressed_types import COMPRESSED
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from nas.errors import UnsupportedExportError
from nas.export.decilm import check_decilm, export_decilm
from nas.export.exported import Exported
from nas.export.gguf import check_gguf, export_gguf
from nas.export.hf import export_hf
from nas.export.parent_settings import ParentSettings
from nas.export.plain import check_plain, export_plain
from nas.export.rounded import RoundedMatrices

Exporter = Callable[[PuzzleNasForCausalLM, PreTrainedTokenizerBase, Path, str, ParentSettings | None], Exported]
"""Takes the child, its tokenizer, the folder to write, the card as Markdown, and the settings in the parent's files,
which the child must keep; None: they are not compared."""

FORMATS: dict[str, Exporter] = {
    "hf": export_hf,
    "decilm": export_decilm,
    "gguf": export_gguf,
    "plain": export_plain,
}
_COMPRESSED = {"decilm": export_decilm, "plain": export_plain}
"""The formats whose matrices may be stored as compressed-tensors does."""


@dataclass(frozen=True)
class Target:
    """A format, and the type of the weights in it. `precision` is the type of most matrices of a GGUF file; None: what
    the scenario serves in, if llama.cpp serves, else f16. In `decilm` and `plain` it is fp8, int4, or None. `dtype` is
    the type in other formats; None: what the scenario serves in."""

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


def exporter(target: Target, rounded: RoundedMatrices | None = None) -> Exporter:
    """The function that writes it; `rounded` are matrices that are rounded already, for `decilm` and `plain`. Raises
    UnsupportedExportError for a format that there is not, and for a precision that it does not have."""
    format, precision = target.format, target.precision
    if target.dtype is not None and format == "gguf":
        raise UnsupportedExportError(f"dtype {target.dtype}: a GGUF file has a precision instead, such as q8_0")
    if format not in FORMATS:
        raise UnsupportedExportError(f"there is no export format {format!r}; formats: {', '.join(FORMATS)}")
    if format in _COMPRESSED and precision in (None, *COMPRESSED):
        return partial(_COMPRESSED[format], rounded=rounded or RoundedMatrices(precision or ""))
    if precision is None:
        return FORMATS[format]
    owners = tuple(_COMPRESSED) if precision in COMPRESSED else ("gguf",)
    if format not in owners:
        of = f"format{'s' if len(owners) > 1 else ''} {' and '.join(owners)}"
        raise UnsupportedExportError(f"precision {precision} is one of {of}; format {format} has {_types_of(format)}")
    return partial(export_gguf, precision=precision)


def _types_of(format: str) -> str:
    if format == "gguf":
        return "types such as q8_0"
    return f"{', '.join(COMPRESSED)}, or none" if format in _COMPRESSED else "the type that the scenario serves in"
