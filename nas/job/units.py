"""A budget's limits, and quantities of its metrics: "latency=60%", "memory: 1.5 GiB".

Knows what a limit on a metric means and how it is written; which metrics there are is `cost_models/metrics.py`'s. A
value is a float in the metric's base unit everywhere else in the program. Does not know how anything is measured, or
what the parent's values are.
"""

import difflib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cost_models.errors import QuantityError
from cost_models.metrics import METRICS, Metric
from cost_models.quantities import NUMBER, SECONDS
from nas.errors import BudgetError

_ASSIGNMENT = re.compile(r"\s*([^=\s]+)\s*=\s*(.+?)\s*")


@dataclass(frozen=True)
class Limit:
    """A bound on one metric of the child: at least `value` where more is better, at most `value` for the rest.

    `value` is in the metric's base unit, or a share of the parent's own value where `relative` (0.6 for "60%").
    """

    metric: str
    value: float
    relative: bool

    def __post_init__(self) -> None:
        _row(self.metric)
        if not (math.isfinite(self.value) and self.value > 0):
            raise BudgetError(f"a limit on {self.metric} is positive and finite, not {self.value}")
        if self.relative and not self.at_least and self.value > 1:
            raise BudgetError(
                f"{self.text} of the parent's {self.metric} limits nothing, because the parent itself meets it; "
                "write a percentage in (0, 100]"
            )

    @property
    def row(self) -> Metric:
        """The row of its metric in the table of metrics."""
        return METRICS[self.metric]

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.row.at_least

    @property
    def text(self) -> str:
        """The text of a job file; it reads back as the same limit."""
        if self.relative:
            return f"{100 * self.value:.15g}%"
        return f"{self.value!r} {self.row.unit.base}".rstrip()

    def absolute(self, parent_value: float) -> float:
        """The bound in base units, for a parent whose own value is `parent_value`."""
        return self.value * parent_value if self.relative else self.value

    def __str__(self) -> str:
        bound = f"{self.text} of the parent's" if self.relative else format_quantity(self.metric, self.value)
        return f"{self.metric} {'>=' if self.at_least else '<='} {bound}"


def parse_quantity(metric: str, text: object) -> float:
    """The value of `text` in the base unit of `metric`: `parse_quantity("latency", "12 ms") == 0.012`.

    Raises BudgetError for an unknown metric, QuantityError for a missing unit, or one that does not fit the metric.
    """
    return _row(metric).unit.parse(metric, text)


def parse_seconds(name: str, text: object) -> float:
    """A duration that is no metric, such as a solver's time limit; `name` says which in the error."""
    return SECONDS.parse(name, text)


def format_quantity(metric: str, value: float) -> str:
    """`value`, in the base unit of `metric`, to three significant digits or the whole number.

    "12.3 ms", "1.50 GiB", "1234 tok/s", "2.10 B". Raises ValueError for NaN and infinity.
    """
    return _row(metric).unit.format(metric, value)


def exact_quantity(metric: str, value: float) -> str:
    """`value`, in the base unit of `metric`, as someone may have written it: "12.345 ms", "10 MiB", "900 tok/s".

    Six significant digits, less trailing zeros. Raises ValueError for NaN and infinity.
    """
    return _row(metric).unit.exact(metric, value)


def said_limit(metric: str, text: object) -> str:
    """A limit as it is kept, in base units, as people read it: "10485760.0 B" is "10 MiB", "60%" is "60%"."""
    try:
        limit = parse_limit(metric, text)
    except (BudgetError, QuantityError):
        return str(text)  # an older version wrote it
    return limit.text if limit.relative else exact_quantity(metric, limit.value)


def said_budget(budget: Mapping[str, object], between: str = " ") -> str:
    """A budget as it is kept, for people: "latency 60%, memory 10 MiB"."""
    return ", ".join(f"{metric}{between}{said_limit(metric, text)}" for metric, text in budget.items())


def parse_limit(metric: str, text: object) -> Limit:
    """The limit that `text`, a quantity or a percentage of the parent's value, puts on `metric`.

    Raises BudgetError for an unknown metric, or a percentage above 100 where less is better, QuantityError for units
    that do not fit it.
    """
    _row(metric)
    if isinstance(text, str) and text.rstrip().endswith("%"):
        return Limit(metric, parse_percent(text), relative=True)
    return Limit(metric, parse_quantity(metric, text), relative=False)


def parse_budget(text: str) -> tuple[Limit, ...]:
    """A budget as given on a command line: "latency=50%" or "latency=50%,memory=1.5GiB".

    Raises as `parse_limit` does, and BudgetError where a metric is limited twice.
    """
    limits: dict[str, Limit] = {}
    for part in text.split(","):
        match = _ASSIGNMENT.fullmatch(part)
        if match is None:
            raise BudgetError(
                f"budget {part.strip()!r} is not METRIC=VALUE; write it like latency=60% or memory=1.5GiB"
            )
        if match[1] in limits:
            raise BudgetError(f"budget {text!r} limits {match[1]} twice")
        limits[match[1]] = parse_limit(match[1], match[2])
    return tuple(limits.values())


def needs_meter(budget: Collection[Limit]) -> bool:
    """Whether a limit is on something that an energy meter takes."""
    return any(limit.row.measured_by == "meter" for limit in budget)


def parse_percent(text: str) -> float:
    """The share that "60%" is: 0.6. Raises QuantityError unless it is positive."""
    match = NUMBER.fullmatch(text.strip())
    if match is None or match[2] != "%":
        raise QuantityError(f"{text!r} is not a percentage; write it like 60%")
    share = float(match[1]) / 100
    if not (math.isfinite(share) and share > 0):
        raise QuantityError(f"{text!r} is not a positive percentage; write it like 60%")
    return share


def did_you_mean(word: str, known: Collection[str]) -> str:
    """The message for an unknown word: the nearest known one where there is one, then all of them."""
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return (f"did you mean {nearest[0]!r}? " if nearest else "") + f"known: {', '.join(known)}"


def _row(metric: str) -> Metric:
    if metric not in METRICS:
        raise BudgetError(f"{metric!r} is not a metric; {did_you_mean(metric, METRICS)}")
    return METRICS[metric]
