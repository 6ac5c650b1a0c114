"""Sums of costs beside whole architectures that `nas costs check` timed, as lines of text."""

from dataclasses import dataclass
from statistics import fmean

from cost_models.timing.prediction_error import PredictionError
from db import models
from db.store import Store
from nas.solve.solve import measured
from nas.solve.whole_times import cost_check


@dataclass(frozen=True)
class SumsOfCosts:
    """`wholes` are (architecture, predicted, measured, error), the cheapest first; `errors` are (of what, mean absolute
    error, bias, worst, Kendall's tau), the repeat of a timing last."""

    wholes: tuple[tuple[str, str, str, str], ...]
    errors: tuple[tuple[str, str, str, str, str], ...]


def sums_of_costs(store: Store, search: models.SearchRow) -> SumsOfCosts | None:
    """None if no whole architecture of the search was timed."""
    rows = store.whole_times(search.id)
    found = cost_check(measured(store, search), rows) if rows else None
    if found is None:
        return None
    wholes = sorted(found.wholes, key=lambda whole: whole.predicted)
    errors = [("latency", found.error), *found.phases.items()]
    errors += [] if found.repeats is None else [("a repeated timing of latency", found.repeats)]
    return SumsOfCosts(
        tuple((one.architecture, f"{one.predicted:.1%}", f"{fmean(one.timed):.1%}", f"{one.error:+.1%}")
              for one in wholes),
        tuple(_line(name, error) for name, error in errors),
    )  # fmt: skip


def _line(name: str, error: PredictionError) -> tuple[str, str, str, str, str]:
    tau = "-" if error.tau is None else f"{error.tau:.3f}"
    return name, f"{error.mape:.2%}", f"{error.bias:+.2%}", f"{error.worst:+.1%}", tau
