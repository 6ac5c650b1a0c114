"""Quantities with units, and limits on them: "12 ms", "1.5 GiB", "900 tok/s", "2.1 B", "60%".

Knows which units a budget's metric is given in, and how a number in base units prints. A value is a float in the
metric's base unit everywhere else in the program: seconds, tokens per second, bytes, parameters. Does not know how
anything is measured, or what the parent's values are. Standard library only.
"""

import difflib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from nas.errors import BudgetError, QuantityError

_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\D.*)?")
_ASSIGNMENT = re.compile(r"\s*([^=\s]+)\s*=\s*(.+?)\s*")


@dataclass(frozen=True)
class _Dimension:
    """The dimension of a quantity. The units it prints in ascend, `units` has every unit it reads, in base units."""

    base: str
    shown: tuple[str, ...]
    units: Mapping[str, float]
    examples: str


_TIME = _Dimension(
    "s",
    ("ns", "us", "ms", "s"),
    {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600},
    "12 ms, 1.5 s",
)
_RATE = _Dimension("tok/s", ("tok/s",), {"tok/s": 1, "tokens/s": 1}, "900 tok/s")
_BYTES = _Dimension(
    "B",
    ("B", "KiB", "MiB", "GiB", "TiB"),
    {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    "800 MiB, 1.5 GiB",
)
_COUNT = _Dimension("", ("", "k", "M", "B", "T"), {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}, "350 M, 2.1 B")

# The metrics of a budget. Times and throughput are of one scenario; `latency` is the whole batch, first to last token.
METRICS: Mapping[str, _Dimension] = {
    "latency": _TIME,
    "ttft": _TIME,
    "decode": _TIME,
    "throughput": _RATE,
    "memory": _BYTES,
    "parameters": _COUNT,
}

COLUMNS: Mapping[str, str] = {
    "latency": "latency_s",
    "ttft": "ttft_s",
    "decode": "decode_s",
    "throughput": "throughput",
    "memory": "memory_bytes",
    "parameters": "parameters",
}
"""Their names among the costs, and in the columns of a trial."""


@dataclass(frozen=True)
class Limit:
    """A bound on one metric of the child: at least `value` for throughput, at most `value` for the rest.

    `value` is in the metric's base unit, or a share of the parent's own value where `relative` (0.6 for "60%").
    """

    metric: str
    value: float
    relative: bool

    def __post_init__(self) -> None:
        _dimension(self.metric)
        if not (math.isfinite(self.value) and self.value > 0):
            raise BudgetError(f"a limit on {self.metric} is positive and finite, not {self.value}")
        if self.relative and not self.at_least and self.value > 1:
            raise BudgetError(
                f"{self.text} of the parent's {self.metric} limits nothing, the parent itself fits; "
                "write a percentage in (0, 100]"
            )

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.metric == "throughput"

    @property
    def text(self) -> str:
        """The text of a job file; it reads back as the same limit."""
        if self.relative:
            return f"{100 * self.value:.15g}%"
        return f"{self.value!r} {_dimension(self.metric).base}".rstrip()

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
    return _parse(_dimension(metric), metric, text)


def parse_seconds(name: str, text: object) -> float:
    """A duration that is no metric, such as a solver's time limit; `name` says which in the error."""
    return _parse(_TIME, name, text)


def format_quantity(metric: str, value: float) -> str:
    """`value`, in the base unit of `metric`, to three significant digits or the whole number.

    "12.3 ms", "1.50 GiB", "1234 tok/s", "2.10 B". Raises ValueError for NaN and infinity.
    """
    number, unit = _fitting(metric, value)
    decimals = 0 if number == 0 else max(0, 2 - math.floor(math.log10(abs(number) * 1.0005)))
    if unit == "" and number == round(number):
        decimals = 0
    return f"{number:.{decimals}f} {unit}".rstrip()


def exact_quantity(metric: str, value: float) -> str:
    """`value`, in the base unit of `metric`, as someone may have written it: "12.345 ms", "10 MiB", "900 tok/s".

    Six significant digits, less trailing zeros. Raises ValueError for NaN and infinity.
    """
    number, unit = _fitting(metric, value)
    digits = f"{number:.6g}"
    return f"{digits if 'e' not in digits else f'{number:.0f}'} {unit}".rstrip()


def said_limit(metric: str, text: object) -> str:
    """A limit as it is kept, in base units, as people read it: "10485760.0 B" is "10 MiB", "60%" is "60%"."""
    try:
        limit = parse_limit(metric, text)
    except (BudgetError, QuantityError):
        return str(text)  # of an older version's
    return limit.text if limit.relative else exact_quantity(metric, limit.value)


def said_budget(budget: Mapping[str, object], between: str = " ") -> str:
    """A budget as it is kept, for people: "latency 60%, memory 10 MiB"."""
    return ", ".join(f"{metric}{between}{said_limit(metric, text)}" for metric, text in budget.items())


def parse_limit(metric: str, text: object) -> Limit:
    """The limit that `text`, a quantity or a percentage of the parent's value, puts on `metric`.

    Raises BudgetError for an unknown metric, or a percentage above 100 where less is better, QuantityError for units
    that do not fit it.
    """
    _dimension(metric)
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


def parse_percent(text: str) -> float:
    """The share that "60%" is: 0.6. Raises QuantityError unless it is positive."""
    match = _NUMBER.fullmatch(text.strip())
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


def _dimension(metric: str) -> _Dimension:
    if metric not in METRICS:
        raise BudgetError(f"{metric!r} is not a metric; {did_you_mean(metric, METRICS)}")
    return METRICS[metric]


def _fitting(metric: str, value: float) -> tuple[float, str]:
    """A value in the unit it prints in. Raises ValueError for NaN and infinity."""
    if not math.isfinite(value):
        raise ValueError(f"{metric} is {value}, which is no quantity")
    dimension = _dimension(metric)
    # 0.9995: what would round up to 1000 or 1024 of one unit is shown as one of the next.
    fitting = [unit for unit in dimension.shown if abs(value) >= 0.9995 * dimension.units[unit]]
    unit = (fitting or [dimension.base if value == 0 else dimension.shown[0]])[-1]
    return value / dimension.units[unit], unit


def _parse(dimension: _Dimension, name: str, text: object) -> float:
    match = None if isinstance(text, bool) else _NUMBER.fullmatch(str(text).strip())
    if match is None:
        raise QuantityError(f"{text!r} is no value for {name}; write it like {dimension.examples}")
    unit = (match[2] or "").strip()
    if unit not in dimension.units:
        problem = f"{unit!r} in {text!r} is no unit of {name}" if unit else f"{text!r} has no unit"
        units = ", ".join(unit for unit in dimension.units if unit)
        raise QuantityError(f"{problem}; {name} is given in {units}, like {dimension.examples}")
    return float(match[1]) * dimension.units[unit]
