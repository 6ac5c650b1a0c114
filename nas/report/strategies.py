"""A plot of strategies for `nas compare`: the real and the predicted KL of each answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas.files.output import image_format, write_whole
from nas.report.plots import file_bytes, strategies_figure

if TYPE_CHECKING:
    from nas.compare.strategies import StrategyResult


def write_comparison(lines: Sequence["StrategyResult"], path: Path) -> Path:
    """To a .svg or .png file, whole or not at all; strategies without an answer are left out.

    Raises UsageError for another ending, OSError where the file cannot be written.
    """
    format = image_format(path)
    rows = [
        (
            line.strategy,
            line.trial.kl_whole,
            line.trial.score if line.trial.metric == "kl" else None,
            line.healed_kl,
        )
        for line in lines
        if line.trial is not None and line.trial.kl_whole is not None
    ]
    return write_whole(path, file_bytes(strategies_figure(rows), format))
