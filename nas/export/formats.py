"""The table of all export formats."""

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
from nas.export.plain import check_plain, export_plain

FORMATS: dict[
    str, Callable[[PuzzleNasForCausalLM, PreTrainedTokenizerBase, Path, str, ParentSettings | None], Exported]
] = {
    "hf": export_hf,
    "decilm": export_decilm,
    "plain": export_plain,
}


def check_format(format: str, choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
    """Raise UnsupportedExportError if the format cannot carry a child of such choices. This check comes before any
    work."""
    if format == "decilm":
        check_decilm(choices, config)
    if format == "plain":
        check_plain(choices, config)


def export(
    format: str,
    child: PuzzleNasForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    card: str,
    parent: ParentSettings | None = None,
) -> Exported:
    """`parent` holds the settings in the parent's files, which the child must keep; None: they are not compared. Raises
    UnsupportedExportError for an unknown format, and the errors of the format's exporter."""
    if format not in FORMATS:
        raise UnsupportedExportError(f"there is no export format {format!r}; formats: {', '.join(FORMATS)}")
    return FORMATS[format](child, tokenizer, out, card, parent)
