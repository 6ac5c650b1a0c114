"""Sums of costs beside whole architectures that `nas costs check` timed, as cells of text."""

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cost_models.timing.prediction_error import PredictionError
    from nas.solve.whole_times import CostCheck


@dataclass(frozen=True)
class CostCheckLines:
    """`wholes` are (architecture, predicted, measured, error), the cheapest first; `errors` are (of what, mean absolute
    error, bias, worst, Kendall's tau or "-"), the repeat of a timing last."""

    wholes: tuple[tuple[str, str, str, str], ...]
    errors: tuple[tuple[str, str, str, str, str], ...]


def cost_check_lines(found: "CostCheck") -> CostCheckLines:
    wholes = sorted(found.wholes, key=lambda whole: whole.predicted)
    errors = [("latency", found.error), *found.phases.items()]
    errors += [] if found.repeats is None else [("a repeated timing of latency", found.repeats)]
    return CostCheckLines(
        tuple((one.architecture, f"{one.predicted:.1%}", f"{fmean(one.timed):.1%}", f"{one.error:+.1%}")
              for one in wholes),
        tuple(_error(name, error) for name, error in errors),
    )  # fmt: skip


def _error(name: str, error: "PredictionError") -> tuple[str, str, str, str, str]:
    tau = "-" if error.tau is None else f"{error.tau:.3f}"
    return name, f"{error.mape:.2%}", f"{error.bias:+.2%}", f"{error.worst:+.1%}", tau
