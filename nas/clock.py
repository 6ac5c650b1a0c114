"""Times of different days on one clock: how much faster or slower the machine is now than when others were taken."""

from collections.abc import Mapping, Sequence

from cost_models.geometry import Geometry
from cost_models.measured import MeasuredGeometry
from db import models


def clock(
    known: Mapping[Geometry, models.Cost | None],
    measured: Mapping[Geometry, MeasuredGeometry],
    own: Sequence[Geometry],
) -> tuple[float, float]:
    """The factors for new seconds of prefill and decode that make them comparable with the known ones.

    A machine is faster on one day than on another. The parent's `own` parts are timed every time: what is known of the
    whole parent, over what it took now. 1 where not all of it is known.
    """
    rows = [row for row in map(known.get, own) if row is not None]
    if len(rows) < len(own):
        return 1.0, 1.0
    factors = []
    for phase in ("prefill_s", "decode_s"):
        now = sum(getattr(measured[geometry], phase) for geometry in own)
        factors.append(sum(getattr(row, phase) for row in rows) / now if now else 1.0)
    return factors[0], factors[1]
