"""Every format a child can be exported to, written out."""

from collections.abc import Callable, Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from blocklib.block import Choice
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from nas.errors import UnsupportedExportError
from nas.export.decilm import check_decilm, export_decilm
from nas.export.exported import Exported
from nas.export.hf import export_hf
from nas.export.parent_settings import ParentSettings

FORMATS: dict[
    str, Callable[[PuzzleNasForCausalLM, PreTrainedTokenizerBase, Path, str, ParentSettings | None], Exported]
] = {
    "hf": export_hf,
    "decilm": export_decilm,
}


def check_format(format: str, choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
    """Raise UnsupportedExportError where a child made of such choices could not be written: before any work, not after
    it."""
    if format == "decilm":
        check_decilm(choices, config)


def export(
    format: str,
    child: PuzzleNasForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    card: str,
    parent: ParentSettings | None = None,
) -> Exported:
    """`parent`: what its own files say, which the child says too and is held against; None: nothing is.

    Raises UnsupportedExportError for a format there is not, and whatever the format's exporter raises."""
    if format not in FORMATS:
        raise UnsupportedExportError(f"no export format {format!r}; formats: {', '.join(FORMATS)}")
    return FORMATS[format](child, tokenizer, out, card, parent)
