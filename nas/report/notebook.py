"""A trial and a front as a notebook shows them: fragments of HTML that need nothing else on the page."""

from blocklib.block import Architecture
from db import models
from nas.report.drawing import drawing
from nas.report.page import environment
from nas.view.table import comparison


def trial_html(search: models.SearchRow, trial: models.TrialRow) -> str:
    """Parent beside child: predicted and measured values, and the subblocks of each layer."""
    return (
        environment()
        .get_template("notebook.html.j2")
        .render(
            search=search,
            trial=trial,
            comparison=comparison(search, trial),
            drawing=drawing(Architecture.parse(search.parent_architecture), Architecture.parse(trial.architecture)),
        )
    )
