"""The measured time of one geometry, with its errors."""

from dataclasses import dataclass, field, fields

from cost_models.cost import Cost
from cost_models.geometry import Geometry


@dataclass(frozen=True)
class MeasuredGeometry:
    """Seconds and joules that one `geometry` adds to a prefill, and to a decode step, of the whole batch; 0 if that is
    too small to measure. `spread` is its standard error in a model made of it alone, as a share of the parent's time;
    `*_error_*` are those of a single one: those of the stack it came from, `layers` long. `decode_s` is 0 where decode
    steps were not timed. `contention` is the share of the cores needed that other programs kept busy meanwhile. None
    where nobody knows.
    """

    geometry: Geometry
    spread: float
    rounds: int
    layers: int
    prefill_s: float
    decode_s: float = 0.0
    prefill_error_s: float | None = field(default=0.0, kw_only=True)
    decode_error_s: float | None = field(default=0.0, kw_only=True)
    contention: float | None = field(default=0.0, kw_only=True)
    prefill_j: float | None = field(default=None, kw_only=True)
    decode_j: float | None = field(default=None, kw_only=True)
    prefill_error_j: float | None = field(default=None, kw_only=True)
    decode_error_j: float | None = field(default=None, kw_only=True)

    @property
    def cost(self) -> Cost:
        """Its measured fields; those that arithmetic gives are 0."""
        return Cost(**{name: getattr(self, name) for name in _KEPT})

    @staticmethod
    def of(geometry: Geometry, spread: float, cost: Cost) -> "MeasuredGeometry":
        """The measurement, read back from a cost, which does not keep the numbers of rounds and layers."""
        return MeasuredGeometry(geometry, spread, 0, 0, **{name: getattr(cost, name) for name in _KEPT})


_KEPT = tuple(each.name for each in fields(Cost) if each.name in MeasuredGeometry.__dataclass_fields__)
"""Fields that a cost keeps of a measurement."""
