"""Peak memory of each stage of a search: all its processes together, as planned and as it was, and the process that the
user started.

    python benchmarks/search_memory.py job.yaml [--home FOLDER]

Memory is the proportional set size (PSS) of the search, of Ray and of its workers, looked at several times a second: a
page that several processes share is divided between them, so that a sum counts it once. Without --home the search runs
in an empty home, which is removed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

import nas
from db.store import Store

_EVERY_S = 0.3
_GIB = 1 << 30


def pss_bytes(process: psutil.Process) -> int:
    try:
        with Path(f"/proc/{process.pid}/smaps_rollup").open(encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):  # It has ended.
        return 0


def samples(command: list[str], environment: dict[str, str]) -> list[tuple[datetime, int, int]]:
    """When, and the bytes then of all processes and of the first, until the command ends."""
    found: list[tuple[datetime, int, int]] = []
    running = subprocess.Popen(command, env=environment)
    driver = psutil.Process(running.pid)
    while running.poll() is None:
        try:
            family = [driver, *driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        each = [pss_bytes(process) for process in family]
        found.append((datetime.now(UTC), sum(each), each[0]))
        time.sleep(_EVERY_S)
    if running.wait():
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    return found


def planned_gib(job: Path) -> dict[str, str]:
    """The plan, by the stages of the database: the child is timed in the stage that finds it."""
    found = nas.plan(job, progress=False)
    names = {"time the child": "solve", "evaluate": "heal"}
    needs = [stage.need for stage in found.stages]
    return {names.get(need.stage, need.stage): f"{need.main_bytes(found.machine) / _GIB:.2f}" for need in needs}


def table(store: Store, found: list[tuple[datetime, int, int]], planned: dict[str, str]) -> None:
    """Rows of stages: seconds, the peak of all processes, and that of the driver."""
    print("| stage | seconds | planned, GiB | all processes, GiB | driver, GiB |\n|---|---|---|---|---|")
    ends = found[0][0]
    for stage in store.stages(store.searches()[-1].id):
        begin = stage.started_at.replace(tzinfo=UTC)
        until = begin.timestamp() + stage.seconds
        row("before" if ends == found[0][0] else "", "", found, ends.timestamp(), begin.timestamp())
        row(stage.name, planned.get(stage.name, ""), found, begin.timestamp(), until)
        ends = datetime.fromtimestamp(until, UTC)
    row("in all", "", found, found[0][0].timestamp(), found[-1][0].timestamp())


def row(name: str, planned: str, found: list[tuple[datetime, int, int]], begin: float, end: float) -> None:
    inside = [(whole, driver) for at, whole, driver in found if begin <= at.timestamp() <= end]
    if name and inside:
        whole, driver = (max(column) / _GIB for column in zip(*inside, strict=True))
        print(f"| {name} | {end - begin:.0f} | {planned} | {whole:.2f} | {driver:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--home", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        home = asked.home or Path(empty)
        command = [str(Path(sys.executable).with_name("nas")), "search", str(asked.job)]
        found = samples(command, os.environ | {"NAS_HOME": str(home)})
        with Store.open(home / "nas.db") as store:
            table(store, found, planned_gib(asked.job))


if __name__ == "__main__":
    main()
