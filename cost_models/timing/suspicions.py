"""Which measured times are impossible or unlikely, and why. Pure arithmetic on times that were taken."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations

from cost_models.geometry import Geometry
from cost_models.timing.measured_geometry import MeasuredGeometry

_SURE = 2.0
"""The difference, in standard errors, from which one time counts as longer than another."""


def suspicions(times: Mapping[Geometry, MeasuredGeometry], has_decode: bool) -> dict[Geometry, str]:
    """Times that are impossible or unlikely, in words: weights that take no time, and a dense FFN or an attention with
    KV heads that certainly takes longer than a larger one of its kind."""
    found: dict[Geometry, str] = {}
    for geometry, timed in times.items():
        if geometry.is_timed and (timed.prefill_s <= 0 or (has_decode and timed.decode_s <= 0)):
            found[geometry] = "took no time to speak of, though it holds weights"
    sized = [geometry for geometry in times if geometry.subblock.kind in ("kv", "ffn")]
    for small, large in permutations(sized, 2):
        is_alike = replace(small.subblock, size="") == replace(large.subblock, size="") and small.cache == large.cache
        if is_alike and small.subblock.number < large.subblock.number:
            longer = _longer(times[small], times[large])
            if longer:
                found.setdefault(small, f"took {longer:.2f} times as long as {large}, which is larger")
                found.setdefault(large, f"took less time than {small}, which is smaller")
    return found


def _longer(one: MeasuredGeometry, other: MeasuredGeometry) -> float | None:
    """How many times as long the one took, in the first phase in which it surely took longer."""
    for phase in ("prefill", "decode"):
        seconds = [getattr(timed, f"{phase}_s") for timed in (one, other)]
        errors = [getattr(timed, f"{phase}_error_s") for timed in (one, other)]
        if None not in errors and seconds[1] > 0 and seconds[0] - seconds[1] > _SURE * sum(errors):
            return float(seconds[0] / seconds[1])
    return None
