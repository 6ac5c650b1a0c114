"""Make times of different days comparable: how much faster or slower the machine is now than at earlier timings."""

from collections.abc import Mapping, Sequence

from cost_models.cost import MEASURED
from cost_models.geometry import Geometry
from cost_models.timing.measure import MeasuredGeometry
from db import models


def clock(
    known: Mapping[Geometry, models.CostRow | None],
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
