"""The cost of serving something, and the metrics a budget can limit. Standard library only.

A cost is of anything: one subblock, the fixed part, a whole model; costs add. Knows nothing of where its numbers come
from: `analytic.py` computes some, `measured.py` times the others.

All metrics but throughput are linear in the cost, so a solver may sum them over its options. A floor on
throughput is a ceiling on latency, which is linear (Puzzle, arXiv 2411.19146, section 4.3, and its code: tokens
*generated* over the time, the prompt's not counted).
"""

from dataclasses import dataclass, fields
from typing import Any

from cost_models.scenario import Scenario

LINEAR_METRICS = ("ttft_s", "decode_s", "latency_s", "memory_bytes", "parameters")
METRICS = (*LINEAR_METRICS, "throughput")


@dataclass(frozen=True)
class Cost:
    """Seconds are for the whole batch: `prefill_s` of one prefill, `decode_s` of one decode step.

    `active_parameters` are those one token uses. `prefill_bytes` and `decode_bytes` are the weights one such pass
    reads: of sparse subblocks the expected union over its tokens. `cache_bytes` is the cache of the whole batch when
    all sequences are at their longest.

    `prefill_error_s` and `decode_error_s` are standard errors. Those of a sum are the sums of its parts': whatever the
    parts' errors share, and they share much, that of the sum is no larger. `contention` is the share of the cores
    needed that other programs kept busy while the seconds were measured; that of a sum is its worst part's. None where
    nobody knows: then nobody knows of the sum either.
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

    def __add__(self, other: "Cost") -> "Cost":
        def of_both(name: str) -> Any:
            pair = getattr(self, name), getattr(other, name)
            if None in pair:
                return None
            return max(pair) if name == "contention" else sum(pair)

        return Cost(*(of_both(each.name) for each in fields(self)))

    def errors(self, scenario: Scenario) -> dict[str, float | None]:
        """The standard error of each metric that takes a clock, but for throughput, whose share of it is latency's."""
        prefill_s, decode_s = self.prefill_error_s, self.decode_error_s
        steps = scenario.generated_tokens - 1
        latency_s = None if prefill_s is None or decode_s is None else prefill_s + steps * decode_s
        return {"ttft_s": prefill_s, "decode_s": decode_s, "latency_s": latency_s}

    def metrics(self, scenario: Scenario) -> dict[str, float]:
        """The linear metrics: those of a sum are the sums of these.

        `ttft_s`: until the first token is out. `decode_s`: one step of the whole batch. `latency_s`: until the last
        token is out. `memory_bytes`: weights and cache.
        """
        return {
            "ttft_s": self.prefill_s,
            "decode_s": self.decode_s,
            "latency_s": self.prefill_s + (scenario.generated_tokens - 1) * self.decode_s,
            "memory_bytes": self.weight_bytes + self.cache_bytes,
            "parameters": self.parameters,
        }

    def totals(self, scenario: Scenario) -> dict[str, float]:
        """Every metric of a whole model; `throughput` in generated tokens per second.

        Throughput is left out where the cost holds no seconds, as that of arithmetic alone does.
        """
        linear = self.metrics(scenario)
        if linear["latency_s"] == 0:
            return linear
        return linear | {"throughput": scenario.batch * scenario.generated_tokens / linear["latency_s"]}


ZERO = Cost()


def limit(metric: str, value: float, scenario: Scenario) -> tuple[str, float]:
    """A budget as a ceiling on a linear metric: (metric, most it may be).

    `value` is the most a metric may be; for throughput the least. Raises ValueError for a metric there is not, and for
    a value that is not positive.
    """
    if metric not in METRICS:
        raise ValueError(f"no metric is called {metric!r}; metrics: {', '.join(METRICS)}")
    if not value > 0:
        raise ValueError(f"a limit of {value} on {metric} cannot be met; it must be positive")
    if metric == "throughput":
        return "latency_s", scenario.batch * scenario.generated_tokens / value
    return metric, value
