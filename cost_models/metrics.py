"""The metrics that a budget can limit: one table. Standard library only.

A row says what a metric is called, how its values are written, which way is better, how it follows from a cost, and
what measures it. Everything that needs to know more than one metric reads this table: budgets, the solver's costs,
help texts, tables, reports, the columns of a trial. A new metric needs a row here, the columns that `Metric.columns`
names in `db/models.py`, their migration and a line in the job template; one that takes a new measurement also needs
fields of `Cost`. See docs/adding/metric.md.

A solver sums metrics over its options, so it limits those that are linear in the cost. The others follow from one of
them. Throughput is the reciprocal of latency, so a floor on it is a ceiling on latency (Puzzle, arXiv 2411.19146,
section 4.3, and its code: tokens *generated* over the time, the prompt's not counted). Bits are those of the file per
weight of the parent, so a ceiling on them is one on the file. `Metric.from_summed` and `to_summed` alone know this.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal

from cost_models.quantities import BITS, BYTES, COUNT, JOULES, RATE, SECONDS, Unit
from cost_models.scenario import Scenario

if TYPE_CHECKING:
    from cost_models.cost import Cost

BITS_OF_A_BYTE = 8

Parts = Callable[[Scenario], Mapping[str, int]]
"""Fields of a cost, and how often each counts under a scenario."""


@dataclass(frozen=True)
class Metric:
    """`name` is what a budget calls it, `column` what it is called among the costs and in a trial's columns, `meaning`
    one line for help texts. `parts` are what it sums.

    `measured_by` says what takes it: a clock or an energy meter, whose readings have an error, or arithmetic.
    `reciprocal_of`: it is the generated tokens over that metric, and more of it is better. `has_ratio`: a trial keeps
    the child's share of the parent's beside the value. `bits_of`: it is that metric, in bits, over the parameters of
    the parent; not over the child's, so what is pruned counts as saved. `is_phase`: it is one phase of an answer. If an
    answer is one token, it tells nothing that latency does not.
    """

    name: str
    column: str
    unit: Unit
    meaning: str
    parts: Parts
    measured_by: Literal["arithmetic", "clock", "meter"] = "clock"
    reciprocal_of: "Metric | None" = None
    bits_of: "Metric | None" = None
    has_ratio: bool = False
    is_phase: bool = False

    @property
    def at_least(self) -> bool:
        """Whether more is better, so that a limit is a floor."""
        return self.reciprocal_of is not None

    @property
    def summed(self) -> "Metric":
        """The linear metric that a solver limits in its place: itself, unless it follows from another."""
        return self.reciprocal_of or self.bits_of or self

    @property
    def is_measured(self) -> bool:
        """Whether it has an error, and a budget's verdict depends on a measurement."""
        return self.measured_by != "arithmetic"

    def from_summed(self, value: float, scenario: Scenario, parent_parameters: int | None) -> float:
        """A value of `summed` as one of this: what takes no time has an infinite throughput. `parent_parameters` None:
        nobody asks for bits per weight of it."""
        if self.bits_of is not None:
            return BITS_OF_A_BYTE * value / _known(self, parent_parameters)
        if self.reciprocal_of is None:
            return value
        return scenario.batch * scenario.generated_tokens / value if value else inf

    def to_summed(self, value: float, scenario: Scenario, parent_parameters: int | None) -> float:
        """A value of this as one of `summed`: a floor on throughput becomes a ceiling on latency."""
        if self.bits_of is not None:
            return value * _known(self, parent_parameters) / BITS_OF_A_BYTE
        return self.from_summed(value, scenario, parent_parameters)

    def of(self, cost: "Cost", scenario: Scenario, parent_parameters: int | None) -> float | None:
        """Its value for a cost. None where a part is unknown, and for a reciprocal where the cost holds no seconds."""
        total = self._sum(cost, scenario, lambda part: part)
        if total is None or (self.at_least and not total):
            return None
        return self.from_summed(total, scenario, parent_parameters)

    def error(self, cost: "Cost", scenario: Scenario) -> float | None:
        """Its standard error for a cost: 0 where arithmetic gives it, None where a part's is unknown."""
        if not self.is_measured:
            return 0.0
        error, summed = self._sum(cost, scenario, error_of), self.summed.of(cost, scenario, None)
        if error is None or summed is None or (self.at_least and not summed):
            return None
        return self.error_from(error, self.from_summed(summed, scenario, None), summed)

    def error_from(self, error: float, value: float, summed: float) -> float:
        """The standard error of `value`, where `summed` is the same value of `self.summed` and has `error`: that of a
        reciprocal is as large a share of it."""
        return error if self.reciprocal_of is None else value / summed * error

    def _sum(self, cost: "Cost", scenario: Scenario, field: Callable[[str], str]) -> float | None:
        counted = [(getattr(cost, field(part)), count) for part, count in self.parts(scenario).items() if count]
        return None if None in [value for value, _ in counted] else sum(count * value for value, count in counted)

    # The names of a trial's columns. Errors, ratio and spread are of `summed`: a reciprocal has none of its own.

    @property
    def predicted(self) -> str:
        return f"predicted_{self.column}"

    @property
    def predicted_error(self) -> str:
        """The standard error of the prediction, where the metric is measured."""
        return f"predicted_{self.summed.name}_error{self.summed.column.removeprefix(self.summed.name)}"

    @property
    def ratio(self) -> str | None:
        """The child's over the parent's, as measured side by side; None where a trial keeps none."""
        return f"{self.summed.name}_ratio" if self.summed.has_ratio else None

    @property
    def spread(self) -> str:
        """The standard error of what was measured, relative to it, where the metric is measured."""
        return f"{self.summed.name}_spread"

    @property
    def measured(self) -> tuple[str, ...]:
        """Columns that a measurement of it fills."""
        return tuple(name for name in (self.column, self.ratio, self.spread) if name is not None)

    @property
    def columns(self) -> frozenset[str]:
        """All of them."""
        errors = {self.predicted_error, *self.measured} if self.is_measured else set()
        return frozenset({self.predicted, self.column} | errors)


def _known(metric: Metric, parent_parameters: int | None) -> int:
    assert parent_parameters is not None, f"{metric.name} is per weight of the parent, whose parameters nobody gave"
    return parent_parameters


def error_of(part: str) -> str:
    """The field of a cost that holds the standard error of a measured one: of `prefill_s`, `prefill_error_s`."""
    stem, _, unit = part.rpartition("_")
    return f"{stem}_error_{unit}"


def _answer(unit: str) -> Parts:
    """A prefill, which gives the first token, and a decode step for each other one."""
    return lambda scenario: {f"prefill_{unit}": 1, f"decode_{unit}": scenario.generated_tokens - 1}


def _each(*parts: str) -> Parts:
    return lambda scenario: dict.fromkeys(parts, 1)


LATENCY = Metric(
    "latency", "latency_s", SECONDS, "from the prompt to the last generated token", _answer("s"), has_ratio=True
)
FILE = Metric(
    "file",
    "file_bytes",
    BYTES,
    "weights as the engine loads them, the file's header aside",
    _each("weight_bytes"),
    "arithmetic",
)
_ROWS = (
    LATENCY,
    Metric("ttft", "ttft_s", SECONDS, "the prompt alone: time to the first token", _each("prefill_s"), is_phase=True),
    Metric("decode", "decode_s", SECONDS, "one more token for every sequence", _each("decode_s"), is_phase=True),
    Metric(
        "throughput",
        "throughput",
        RATE,
        "generated tokens per second of latency, the prompt's not counted",
        LATENCY.parts,
        reciprocal_of=LATENCY,
    ),
    Metric("energy", "energy_j", JOULES, "joules of one answer", _answer("j"), "meter", has_ratio=True),
    Metric(
        "memory",
        "memory_bytes",
        BYTES,
        "weights and KV cache, not activations",
        _each("weight_bytes", "cache_bytes"),
        "arithmetic",
    ),
    FILE,
    Metric(
        "bits",
        "bits_per_weight",
        BITS,
        "the file's bits per weight of the parent, so that what is pruned counts as saved",
        FILE.parts,
        "arithmetic",
        bits_of=FILE,
    ),
    Metric("parameters", "parameters", COUNT, "how many the model has", _each("parameters"), "arithmetic"),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ROWS}
"""By name. Times are of the whole batch of one scenario."""
