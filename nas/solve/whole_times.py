"""Sums of costs beside whole architectures that were timed: how far the sums are off, and how far a repeat is.

Reads rows alone, and loads no torch.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from blocklib.block import Architecture
from cost_models.timing.prediction_error import PredictionError, prediction_error
from db import models
from nas.solve.solve import Measured

PHASES = ("latency", "prefill", "decode")


@dataclass(frozen=True)
class TimedWhole:
    """One architecture: its predicted latency as a share of the parent's, and each timing's.

    `contention` is the worst of its timings.
    """

    architecture: str
    predicted: float
    timed: tuple[float, ...]
    contention: float

    @property
    def error(self) -> float:
        """The error of the prediction, as a share of the mean timing."""
        return self.predicted / fmean(self.timed) - 1


@dataclass(frozen=True)
class CostCheck:
    """`error` is that of the sums against the mean timing of each architecture, `repeats` that of one timing against
    another of the same architecture, which no prediction can beat; None if none was timed twice. `phases` is the
    sums' error in prefill and in decode alone.
    """

    wholes: tuple[TimedWhole, ...]
    error: PredictionError
    repeats: PredictionError | None
    phases: dict[str, PredictionError]


def cost_check(known: Measured, rows: Sequence[models.WholeTimeRow]) -> CostCheck | None:
    """None if no architecture was timed but those that the costs are corrected by."""
    takes: dict[str, list[models.WholeTimeRow]] = defaultdict(list)
    for row in rows:
        if not row.corrects:
            takes[row.architecture].append(row)
    if not takes:
        return None
    by_phase = {phase: [_whole(known, phase, text, times) for text, times in takes.items()]
                for phase in PHASES if phase != "decode" or rows[0].decode_s is not None}  # fmt: skip
    wholes = by_phase["latency"]
    twice = [whole.timed for whole in wholes if len(whole.timed) > 1]
    return CostCheck(
        wholes=tuple(wholes),
        error=_error(wholes),
        repeats=prediction_error([timed[1] for timed in twice], [timed[0] for timed in twice]) if twice else None,
        phases={phase: _error(found) for phase, found in by_phase.items() if phase != "latency"},
    )


def _error(wholes: Sequence[TimedWhole]) -> PredictionError:
    return prediction_error([whole.predicted for whole in wholes], [fmean(whole.timed) for whole in wholes])


def _whole(known: Measured, phase: str, architecture: str, takes: Sequence[models.WholeTimeRow]) -> TimedWhole:
    whole = Architecture.parse(architecture)
    costs = known.under(whole).costs
    cost = sum((costs[choice] for choice in whole.choices()), known.fixed)
    steps = known.scenario.generated_tokens - 1
    counts = {"latency": (1, steps), "prefill": (1, 0), "decode": (0, 1)}[phase]

    def seconds(prefill_s: float, decode_s: float | None) -> float:
        return counts[0] * prefill_s + counts[1] * (decode_s or 0.0)

    parent_s = seconds(known.parent.prefill_s, known.parent.decode_s)
    return TimedWhole(
        architecture,
        seconds(cost.prefill_s, cost.decode_s) / parent_s,
        tuple(
            seconds(row.prefill_s, row.decode_s) / seconds(row.parent_prefill_s, row.parent_decode_s) for row in takes
        ),
        max(row.contention for row in takes),
    )
