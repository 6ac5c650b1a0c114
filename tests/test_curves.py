"""Training curves as they are drawn."""

import warnings

from nas.report.distillation import Curve, Panel
from nas.report.plots import curves_figure, file_bytes


def test_losses_that_are_all_zero_are_drawn_without_a_warning() -> None:
    panel = Panel("ffn", (Curve("ffn32", ((0.0, 0.0), (256.0, 0.0))),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert file_bytes(curves_figure([panel]), "svg").startswith(b"<?xml")
