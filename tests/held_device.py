"""A device that another search is timing on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from cost_models.timing.device_lock import alone_on

_LONGEST_S = 30.0


@contextmanager
def held_until_told(told: list[str]) -> Iterator[Callable[[str], None]]:
    """The CPU is held by a thread until somebody is told that he waits for it. Yields who is to be told: he adds each
    line to `told`. A silent wait ends as well, so that a test can say so."""
    taken, free = Event(), Event()

    def hold() -> None:
        with alone_on("cpu"):
            taken.set()
            free.wait(_LONGEST_S)

    def heard(line: str) -> None:
        told.append(line)
        if "waiting: another search" in line:
            free.set()

    holder = Thread(target=hold)
    holder.start()
    taken.wait()
    try:
        yield heard
    finally:
        free.set()
        holder.join()
