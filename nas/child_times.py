"""A child timed beside its parent until it is decided whether it is within its budget, or patience is spent.

Pure but for the clock that patience is of: who times is handed in.
"""

from collections.abc import Callable, Sequence
from time import perf_counter

from cost_models.quality import Quality
from cost_models.timing import Comparison
from nas.budget import Times, of_all, verdict
from nas.units import Limit


def times_in(timed: Comparison) -> Times:
    """The result of a comparison, as columns of a trial; the parent's under "parent"."""
    decode = timed.decode
    return {
        "latency_s": timed.latency.other_s,
        "latency_ratio": timed.latency.ratio,
        "latency_spread": timed.latency.spread,
        "ttft_s": timed.prefill.other_s,
        "ttft_spread": timed.prefill.spread,
        "decode_s": decode.other_s if decode else None,
        "decode_spread": decode.spread if decode else None,
        "throughput": timed.other_throughput,
        "contention": timed.contention,
        "parent": {
            "latency_s": timed.latency.control_s,
            "ttft_s": timed.prefill.control_s,
            "decode_s": decode.control_s if decode else None,
            "throughput": timed.control_throughput,
        },
    }


def timed_until_decided(once: Callable[[str], Comparison], budget: Sequence[Limit], quality: Quality) -> Comparison:
    """`once` times, and is told why it does again; once more as long as the budget is undecided and there is patience,
    which is of the times after the first."""
    timed = once("")
    started = perf_counter()
    while _is_undecided(timed, budget, quality) and perf_counter() - started < quality.patience_s:
        timed = quality.of_both(timed, once("again, as it may be within the budget or not: "))
    return timed


def _is_undecided(timed: Comparison, budget: Sequence[Limit], quality: Quality) -> bool:
    times = times_in(timed)
    return of_all(verdict(times, asked, quality.worst_contention) for asked in budget) == "undecided"
