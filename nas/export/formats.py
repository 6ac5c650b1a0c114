"""Every format a child can be exported to, written out."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from blocklib.model import PuzzleNasForCausalLM
from nas.export.decilm import export_decilm
from nas.export.exported import Exported
from nas.export.hf import export_hf

FORMATS: dict[str, Callable[[PuzzleNasForCausalLM, PreTrainedTokenizerBase, Path, str], Exported]] = {
    "hf": export_hf,
    "decilm": export_decilm,
}


def export(
    format: str, child: PuzzleNasForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path, card: str
) -> Exported:
    """Raises ValueError for a format there is not, and whatever the format's exporter raises."""
    if format not in FORMATS:
        raise ValueError(f"no export format {format!r}; formats: {', '.join(FORMATS)}")
    return FORMATS[format](child, tokenizer, out, card)
