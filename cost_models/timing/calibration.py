"""Costs of parts, corrected by whole architectures that were timed. Pure arithmetic.

A part's time comes from a stack of itself alone. In a mixed architecture it may take a little more or less. Each part
is one measured whole, known to within `TRUST`, and the whole architectures are further ones; non-negative least squares
finds the parts that fit both (`least_squares.py`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blocklib.block import Architecture
from cost_models.geometry import all_geometries
from cost_models.scenario import Scenario
from cost_models.timing.least_squares import Whole, attribute
from cost_models.timing.pair import Comparison
from cost_models.timing.prediction_error import PredictionError, prediction_error

TRUST = 0.1
"""How far, as a share, a part in a mixed architecture may be from the same part in a stack of itself."""

LEAST_SPREAD = 0.003
"""The smallest error that the ratio of a whole architecture can have, because a few rounds may agree by chance."""

Parts = Mapping[str, Mapping[str, float]]
"""By phase, as a cost names it (`prefill_s`, `decode_s`): the seconds of each geometry, by its name."""


@dataclass(frozen=True)
class PhaseTiming:
    """Seconds of one phase in an architecture and in the parent, timed in turns; `spread` is the relative standard
    error of their ratio."""

    seconds: float
    parent_s: float
    spread: float


@dataclass(frozen=True)
class ArchitectureTiming:
    """A whole architecture timed beside the parent; `phases` are by their fields of a cost."""

    architecture: Architecture
    phases: Mapping[str, PhaseTiming]

    @staticmethod
    def of(architecture: Architecture, timed: Comparison) -> "ArchitectureTiming":
        paired = {"prefill_s": timed.prefill} | ({} if timed.decode is None else {"decode_s": timed.decode})
        phases = {phase: PhaseTiming(one.other, one.control, one.spread) for phase, one in paired.items()}
        return ArchitectureTiming(architecture, phases)

    def latency_share(self, scenario: Scenario) -> float:
        """Its latency as a share of the parent's."""
        steps = _steps(scenario)
        child_s = sum(steps[phase] * timed.seconds for phase, timed in self.phases.items())
        return child_s / sum(steps[phase] * timed.parent_s for phase, timed in self.phases.items())


def calibrated(
    parts: Parts, parent: Architecture, timings: Sequence[ArchitectureTiming]
) -> dict[str, dict[str, float]]:
    """The seconds of each part, corrected. Ratios become seconds on the clock of the parts, by the parent's sum of
    them. A part of 0 seconds stays at 0.

    Raises ValueError where an architecture holds a part that is not among them.
    """
    own = counted(parent)
    return {
        phase: _corrected(
            seconds,
            [
                Whole(
                    counted(timing.architecture),
                    timing.phases[phase].seconds / timing.phases[phase].parent_s * _sum(own, seconds),
                    max(timing.phases[phase].spread, LEAST_SPREAD),
                )
                for timing in timings
                if phase in timing.phases
            ],
        )
        for phase, seconds in parts.items()
    }


@dataclass(frozen=True)
class Correction:
    """Parts corrected by some architectures. `plain` and `corrected` are the errors of the sums of both on others."""

    parts: Parts
    plain: PredictionError
    corrected: PredictionError

    @property
    def helps(self) -> bool:
        return self.corrected.mape < self.plain.mape


def correction(
    parts: Parts,
    parent: Architecture,
    scenario: Scenario,
    fitted: Sequence[ArchitectureTiming],
    kept_out: Sequence[ArchitectureTiming],
) -> Correction:
    """Correct the parts by the architectures in `fitted`, and compare on those in `kept_out`.

    Raises ValueError where none is kept out, and as `calibrated` does.
    """

    def error(tried: Parts) -> PredictionError:
        shares = [predicted_share(tried, timing.architecture, parent, scenario) for timing in kept_out]
        return prediction_error(shares, [timing.latency_share(scenario) for timing in kept_out])

    corrected = calibrated(parts, parent, fitted)
    return Correction(corrected, error(parts), error(corrected))


def predicted_share(parts: Parts, architecture: Architecture, parent: Architecture, scenario: Scenario) -> float:
    """The predicted latency of an architecture, as a share of the parent's: the sums of their parts."""
    steps = _steps(scenario)
    child_s, parent_s = (
        sum(steps[phase] * _sum(counted(each), seconds) for phase, seconds in parts.items())
        for each in (architecture, parent)
    )
    return child_s / parent_s


def counted(architecture: Architecture) -> Counter[str]:
    """How often an architecture holds each geometry, by name; the fixed part once."""
    return Counter(map(str, all_geometries(architecture)))


def _corrected(seconds: Mapping[str, float], wholes: Sequence[Whole]) -> dict[str, float]:
    unknown = sorted({name for whole in wholes for name in whole.counts} - seconds.keys())
    if unknown:
        raise ValueError(f"no seconds are known of {', '.join(unknown)}")
    held = {name: amount for name, amount in seconds.items() if amount > 0}
    stacks = [Whole({name: 1.0}, amount, TRUST) for name, amount in held.items()]
    mixed = [
        Whole({name: count for name, count in whole.counts.items() if name in held}, whole.amount, whole.spread)
        for whole in wholes
    ]
    return dict.fromkeys(seconds, 0.0) | attribute([*stacks, *mixed])


def _sum(counts: Mapping[str, int], seconds: Mapping[str, float]) -> float:
    return sum(count * seconds[name] for name, count in counts.items())


def _steps(scenario: Scenario) -> dict[str, int]:
    """How often each phase runs until the last token."""
    return {"prefill_s": 1, "decode_s": scenario.generated_tokens - 1}
