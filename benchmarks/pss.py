"""The memory of processes together: a page that several of them share counts once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_EVERY_S = 0.3


def pss_bytes(process: psutil.Process) -> int:
    """The proportional set size of a process, as Linux counts it: its share of every page that it maps."""
    try:
        with Path(f"/proc/{process.pid}/smaps_rollup").open(encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):  # It has ended.
        return 0


class Peak:
    """The most bytes that were held at once so far."""

    bytes = 0


@contextmanager
def peak_of_family() -> Iterator[Peak]:
    """The peak of this process and all that it started, looked at several times a second until the block ends."""
    peak, own, ended = Peak(), psutil.Process(), threading.Event()

    def look() -> None:
        peak.bytes = max(peak.bytes, sum(map(pss_bytes, [own, *own.children(recursive=True)])))

    def watch() -> None:
        while not ended.wait(_EVERY_S):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        look()
