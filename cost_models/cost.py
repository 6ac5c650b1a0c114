"""The cost of serving something. Standard library only.

It may be the cost of one subblock, the fixed part or a whole model; costs add. Knows nothing of where its numbers come
from: `analytic.py` computes some, `timing/` times the others. `metrics.py` says what a budget can limit of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from cost_models.metrics import METRICS, Metric
from cost_models.scenario import Scenario

MEASURED = ("prefill_s", "decode_s", "prefill_j", "decode_j")
"""Fields that are measured, each with a standard error of its own in the field that `metrics.error_of` names."""


@dataclass(frozen=True)
class Cost:
    """Seconds and joules are for the whole batch: `prefill_s` of one prefill, `decode_s` of one decode step.

    `active_parameters` are those one token uses. `prefill_bytes` and `decode_bytes` are the weights one such pass
    reads: of sparse subblocks the expected union over its tokens. `cache_bytes` is the cache of the whole batch when
    all sequences are at their longest.

    `*_error_s` and `*_error_j` are standard errors. Those of a sum are the sums of its parts': whatever the
    parts' errors share, and they share much, that of the sum is no larger. `contention` is the share of the cores
    needed that other programs kept busy while the seconds were measured; that of a sum is its worst part's. None where
    it is unknown: then that of the sum is unknown, too.
    """

    prefill_s: float = 0.0
    decode_s: float = 0.0
    parameters: int = 0
    active_parameters: int = 0
    weight_bytes: int = 0
    prefill_bytes: int = 0
    decode_bytes: int = 0
    cache_bytes: int = 0
    prefill_error_s: float | None = 0.0
    decode_error_s: float | None = 0.0
    contention: float | None = 0.0
    prefill_j: float | None = 0.0
    decode_j: float | None = 0.0
    prefill_error_j: float | None = 0.0
    decode_error_j: float | None = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        def of_both(name: str) -> Any:
            pair = getattr(self, name), getattr(other, name)
            if None in pair:
                return None
            return max(pair) if name == "contention" else sum(pair)

        return Cost(*(of_both(each.name) for each in fields(self)))

    def metrics(self, scenario: Scenario) -> dict[str, float]:
        """The linear metrics that are known, by column: those of a sum are the sums of these."""
        return self._known((metric for metric in METRICS.values() if metric.summed is metric), scenario, None)

    def totals(self, scenario: Scenario, parent_parameters: int) -> dict[str, float]:
        """Every metric that is known of a whole model, by column; `parent_parameters` are those of its parent.

        Throughput is left out where the cost holds no seconds, as that of arithmetic alone does.
        """
        return self._known(METRICS.values(), scenario, parent_parameters)

    def _known(self, asked: Iterable[Metric], scenario: Scenario, parent_parameters: int | None) -> dict[str, float]:
        values = {metric.column: metric.of(self, scenario, parent_parameters) for metric in asked}
        return {name: value for name, value in values.items() if value is not None}


ZERO = Cost()
