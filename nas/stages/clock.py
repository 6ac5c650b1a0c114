"""Make times of different days comparable: how much faster or slower the machine is now than at earlier timings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cost_models.cost import MEASURED
from cost_models.geometry import Geometry
from cost_models.metrics import error_of
from cost_models.timing.measured_geometry import MeasuredGeometry


def clock(
    known: Mapping[Geometry, object],
    measured: Mapping[Geometry, MeasuredGeometry],
    own: Sequence[Geometry],
) -> dict[str, float]:
    """The factor for each measured field of a new cost that makes it comparable with the known ones.

    A machine is faster on one day than on another. The parent's `own` parts are timed every time: the factor is the
    known time of the whole parent over its time now. It is 1 if a part is not known yet.
    """
    rows = [row for row in map(known.get, own) if row is not None]
    if len(rows) < len(own):
        return dict.fromkeys(MEASURED, 1.0)
    return {field: _factor(*_sums(field, rows, [measured[geometry] for geometry in own])) for field in MEASURED}


def _sums(field: str, *sources: Sequence[object]) -> list[float | None]:
    """None if a part is unknown."""
    columns = [[getattr(one, field) for one in source] for source in sources]
    return [None if None in column else sum(column) for column in columns]


def _factor(then: float | None, now: float | None) -> float:
    return then / now if then is not None and now else 1.0


def on_clock(timed: MeasuredGeometry, factors: Mapping[str, float]) -> MeasuredGeometry:
    """Every measured amount and its error, times its factor. A value that was not measured stays unknown."""
    scaled: dict[str, Any] = {}
    for name, factor in factors.items():
        amount, error = getattr(timed, name), getattr(timed, error_of(name))
        scaled[name] = None if amount is None else factor * amount
        scaled[error_of(name)] = None if error is None else factor * error
    return replace(timed, **scaled)
