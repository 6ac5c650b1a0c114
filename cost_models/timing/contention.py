"""CPU contention: whether other programs took cores away from what is timed.

A model and its control are slowed alike where a machine is slower as a whole, but not where threads wait for one that
has lost its core: small operations lose more than large ones. No spread between rounds tells of that.
"""

import os
import time

import psutil  # type: ignore[import-untyped]

from cost_models.hardware import usable_cores
from cost_models.scenario import Scenario


def cores_needed(scenario: Scenario) -> int:
    """One core for each thread; for another device one core, which keeps the device busy."""
    return scenario.threads or usable_cores() if scenario.device == "cpu" else 1


class Watch:
    """Counts from its making on, over the cores this process may use."""

    def __init__(self, scenario: Scenario):
        self._needed = cores_needed(scenario)
        self._spare = max(0, usable_cores() - self._needed)
        self._started = time.monotonic(), _others_s()

    def contention(self) -> float:
        """The share of the cores needed that others kept busy: 0 where there were enough for all."""
        started, before_s = self._started
        others = (_others_s() - before_s) / (time.monotonic() - started)
        return min(max(0.0, others - self._spare) / self._needed, 1.0)


def _others_s() -> float:
    """CPU seconds used so far by all but this process. The time that other virtual machines took is among them."""
    cores = psutil.cpu_times(percpu=True)
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(len(cores)))
    # A number past the list (cores offline, a container that shows its own only): places in it are no cores' numbers.
    counts_all = max(mine) >= len(cores)
    total = 0.0
    for core, used in enumerate(cores):
        if counts_all or core in mine:
            # Linux counts what guests use as the user's as well.
            idle = used.idle + getattr(used, "iowait", 0.0)
            guests = getattr(used, "guest", 0.0) + getattr(used, "guest_nice", 0.0)
            total += sum(used) - idle - guests
    return total - time.process_time()
