"""The plot of score against a cost: in the report with the trials on it, and alone for `nas pareto`.

This file knows which cost a budget is about. `nas/solve/front.py` finds a front, and `plots.py` draws it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from cost_models.metrics import METRICS, Metric
from db import models
from db.store import Store
from nas.errors import BudgetNotMetError, UnfinishedSearchError
from nas.files.output import image_format, write_whole
from nas.job.units import Limit
from nas.report.plots import Mark, file_bytes, front_figure, inlined, precisions_figure
from nas.report.request import bounded, measured_share
from nas.solve.front import Point, front_of
from nas.solve.precision_fronts import PrecisionFronts, precision_fronts
from nas.solve.solve import Measured, measured

_POINTS = 20


@dataclass(frozen=True)
class TradeOff:
    """The section: a plot, or the reason why there is none."""

    cost: str
    others: tuple[Limit, ...] = ()
    plot: Markup | None = None
    points: tuple[Point, ...] = ()
    why_not: str = ""
    precisions: PrecisionFronts | None = None
    """The fronts of precisions, shapes and both, of a search that chose precisions."""
    precisions_plot: Markup | None = None

    @property
    def no_dearer(self) -> str:
        """A name for architectures that cost no more, in words."""
        return f"{self.cost} or {'more' if METRICS[self.cost].at_least else 'less'}"

    @property
    def unproven(self) -> int:
        """The number of points that are not proven to be the best."""
        return sum(point.status != "optimal" for point in self.points)


def trade_off(
    store: Store,
    search: models.SearchRow,
    budget: Sequence[Limit],
    trials: Sequence[models.TrialRow],
    chosen: models.TrialRow | None,
) -> TradeOff:
    """The front for the cost of the first limit of `budget`; the other limits hold. It solves, which takes seconds on a
    large search."""
    cost = budget[0].metric if budget else "latency"
    # The front is free of every limit on what it sums.
    summed = METRICS[cost].summed.column
    try:
        known = measured(store, search)
        others = tuple(limit for limit in budget if known.ceiling(limit)[0] != summed)
        fronts = precision_fronts(known, cost, others, _POINTS) if known.request.precisions else None
        found = fronts.both if fronts else front_of(known, cost, others, _POINTS)
    except (UnfinishedSearchError, BudgetNotMetError, TimeoutError) as error:
        return TradeOff(cost, why_not=str(error))
    drawn = front_svg(known, cost, found, budget, trials, chosen)
    return TradeOff(cost, others, drawn, found, precisions=fronts, precisions_plot=_precisions_svg(known, fronts))


def _precisions_svg(known: Measured, fronts: PrecisionFronts | None) -> Markup | None:
    if fronts is None:
        return None
    named = {"precisions alone": fronts.precisions}
    if fronts.offers_shapes:
        named |= {f"shapes alone, in {fronts.precision}": fronts.shapes, "both": fronts.both}
    figure = precisions_figure(
        fronts.cost,
        {name: [(point.cost, point.score) for point in points] for name, points in named.items()},
        {each.precision: (each.cost, each.score) for each in fronts.uniform},
        known.whole(fronts.cost),
        fronts.pays_from if fronts.offers_shapes else None,
    )
    return inlined(figure, f"the best predicted score for each {fronts.cost}: {', '.join(named)}")


def front_svg(
    known: Measured,
    cost: str,
    points: Sequence[Point],
    budget: Sequence[Limit] = (),
    trials: Sequence[models.TrialRow] = (),
    chosen: models.TrialRow | None = None,
) -> Markup:
    """`points` of `front_of` as an <svg> element, with the trials on it and the chosen one by its number."""
    figure, shown = _figure(known, cost, budget, points, trials, chosen)
    return inlined(figure, f"the best predicted score for each {cost}, {len(points)} points, with {shown} trials")


def write_front(
    known: Measured,
    cost: str,
    points: Sequence[Point],
    path: Path,
    budget: Sequence[Limit] = (),
    trials: Sequence[models.TrialRow] = (),
) -> Path:
    """The plot of `nas pareto`: `points` of `front_of`, to a .svg or .png file, whole or not at all.

    `budget` are the limits that hold along the front, `trials` the search's, of which those that were built are drawn,
    the latest as the chosen one. Raises UsageError for another ending, OSError where the file cannot be written.
    """
    format = image_format(path)
    built = [trial for trial in trials if trial.kl is not None]
    figure, _ = _figure(known, cost, budget, points, built, built[-1] if built else None)
    return write_whole(path, file_bytes(figure, format))


def _figure(
    known: Measured,
    cost: str,
    budget: Sequence[Limit],
    points: Sequence[Point],
    trials: Sequence[models.TrialRow],
    chosen: models.TrialRow | None,
) -> tuple[Figure, int]:
    """The front under its title, and how many of the trials are on it: those by the metric of its scores, and not older
    than the metric of its cost."""
    metric = METRICS[cost]
    known_of = [trial for trial in trials if getattr(trial, metric.predicted) is not None]
    shown = [trial for trial in known_of if trial.metric == known.metric]
    ceilings = [value for name, value in map(known.ceiling, budget) if name == metric.summed.column]
    whole = known.whole(cost)
    figure = front_figure(
        cost,
        [(point.cost, point.score) for point in points],
        whole,
        known.from_summed(metric, min(ceilings)) if ceilings else None,
        [_mark(trial, metric, whole, chosen) for trial in shown],
        _title(known, cost, budget),
    )
    return figure, len(shown)


def _title(known: Measured, cost: str, budget: Sequence[Limit]) -> str:
    limits = ", ".join(bounded(limit, known.search) for limit in budget)
    return f"{known.search.name}: score against {cost}" + (f"\n{limits}" if limits else "")


def _mark(trial: models.TrialRow, metric: Metric, parent_cost: float, chosen: models.TrialRow | None) -> Mark:
    found = getattr(trial, metric.column)
    measured_cost = None if found is None else parent_cost * measured_share(trial, metric, found, parent_cost)
    is_chosen = chosen is not None and trial.id == chosen.id
    return Mark(trial.id, getattr(trial, metric.predicted), trial.score, measured_cost, is_chosen)
