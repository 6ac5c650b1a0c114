"""A folder like Linux's `/sys/class/powercap`, whose counters a process of its own moves on."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WATTS = 50.0
_RANGE_UJ = 262_143_328_850
_RUNNING = """
import os, sys, time
zone, watts, counter = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
most = int(open(f"{zone}/max_energy_range_uj").read())
started = time.monotonic()
while True:
    with open(f"{zone}/next", "w") as file:
        file.write(f"{(counter + int((time.monotonic() - started) * watts * 1e6)) % most}\\n")
    os.replace(f"{zone}/next", f"{zone}/energy_uj")
    time.sleep(0.001)
"""


def add_zone(folder: Path, zone: str, name: str, counter_uj: int = 0, range_uj: int = _RANGE_UJ) -> Path:
    """A zone that stands still."""
    path = folder / zone
    path.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", counter_uj), ("max_energy_range_uj", range_uj)):
        (path / file).write_text(f"{value}\n")
    return path


@contextmanager
def running(zone: Path, watts: float = _WATTS) -> Iterator[None]:
    """The zone's counter moves on for as long as this lasts, and wraps around."""
    counter = (zone / "energy_uj").read_text()
    process = subprocess.Popen([sys.executable, "-c", _RUNNING, str(zone), str(watts), counter])
    try:
        while (zone / "energy_uj").read_text() == counter:
            assert process.poll() is None
        yield
    finally:
        process.kill()
        process.wait()
