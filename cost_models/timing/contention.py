"""CPU contention: whether other programs used cores that a timing needed.

If the whole machine is slower, a model and its control slow down alike. If threads wait for one that lost its core,
they do not: small operations slow down more than large ones, and the spread between rounds does not show it.
"""

import os
import time
from collections.abc import Callable, Sequence

import psutil  # type: ignore[import-untyped]

from cost_models.hardware import usable_cores
from cost_models.scenario import Scenario


def cores_needed(scenario: Scenario) -> int:
    """The cores that a timing needs: one for each thread; for another device the one that drives it."""
    return scenario.threads or usable_cores() if scenario.device == "cpu" else 1


class Watch:
    """Counts from its creation on, over the cores that this process may use.

    `own` count the CPU seconds of other processes that do what is timed.
    """

    def __init__(self, scenario: Scenario, own: Sequence[Callable[[], float]] = ()):
        self._needed = cores_needed(scenario)
        self._spare = max(0, usable_cores() - self._needed)
        self._own = tuple(own)
        self._started = time.monotonic(), self._others_s()

    def contention(self) -> float:
        """The share of the needed cores that others kept busy: 0 if there were enough for all."""
        started, before_s = self._started
        others = (self._others_s() - before_s) / (time.monotonic() - started)
        return min(max(0.0, others - self._spare) / self._needed, 1.0)

    def _others_s(self) -> float:
        return _all_s() - time.process_time() - sum(used_s() for used_s in self._own)


def _all_s() -> float:
    """CPU seconds that all processes have used so far, including the time that other virtual machines took."""
    cores = psutil.cpu_times(percpu=True)
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(len(cores)))
    # A number is past the end of the list (cores are offline, or a container shows only its own), so places in the list
    # are not core numbers.
    counts_all = max(mine) >= len(cores)
    total = 0.0
    for core, used in enumerate(cores):
        if counts_all or core in mine:
            # Linux counts the time of guests as user time as well.
            idle = used.idle + getattr(used, "iowait", 0.0)
            guests = getattr(used, "guest", 0.0) + getattr(used, "guest_nice", 0.0)
            total += sum(used) - idle - guests
    return total
