"""Time a child beside its parent until the verdict on its budget is decided, or the patience is used up. Apart from the
clock that measures patience, this file is pure: the caller passes the function that times.
"""

from collections.abc import Callable, Sequence
from time import perf_counter

from cost_models.metrics import METRICS
from cost_models.timing.pair import Comparison
from cost_models.timing.quality import Quality
from nas.job.units import Limit
from nas.solve.budget_loop import Times, of_all, verdict


def times_in(timed: Comparison) -> Times:
    """The result of a timing, by the columns of a trial."""
    child: dict[str, float | None] = {}
    parent: dict[str, float | None] = {}
    for metric in METRICS.values():
        if not metric.is_measured:
            continue
        paired = timed.of(metric.summed)
        # Nothing that is timed is counted per weight of the parent.
        child[metric.column] = None if paired is None else metric.from_summed(paired.other, timed.scenario, None)
        parent[metric.column] = None if paired is None else metric.from_summed(paired.control, timed.scenario, None)
        child[metric.spread] = None if paired is None else paired.spread
        if metric.ratio is not None:
            child[metric.ratio] = None if paired is None else paired.ratio
    return Times(child, parent, timed.contention)


def timed_until_decided(once: Callable[[str], Comparison], budget: Sequence[Limit], quality: Quality) -> Comparison:
    """Time with `once` until the verdict is decided or the patience is used up; patience counts from the end of the
    first timing. `once` gets the reason for timing again, and "" at first.
    """
    timed = once("")
    started = perf_counter()
    while _is_undecided(timed, budget, quality) and perf_counter() - started < quality.patience_s:
        timed = quality.of_both(timed, once("again, as it may be within the budget or not: "))
    return timed


def _is_undecided(timed: Comparison, budget: Sequence[Limit], quality: Quality) -> bool:
    times = times_in(timed)
    return of_all(verdict(times, asked, quality.worst_contention) for asked in budget) == "undecided"
