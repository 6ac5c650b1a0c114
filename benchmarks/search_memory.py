"""Peak memory of each stage of a search: all its processes together, as planned and as it was, and the process that the
user started.

    python benchmarks/search_memory.py job.yaml [--home FOLDER] [--nas COMMAND]

Memory is the proportional set size (PSS) of the search, of Ray and of its workers, looked at several times a second: a
page that several processes share is divided between them, so that a sum counts it once. Without --home the search runs
in an empty home, which is removed. With --nas another version of this package searches, by its command `nas`.

Started in a control group with a limit, it also says how much the group held at most, as the kernel counts it, with the
files that it keeps in memory, and how often the limit was reached:

    systemd-run --scope -p MemoryMax=5G python benchmarks/search_memory.py job.yaml
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pss import pss_bytes

import nas
from cost_models.control_group import control_groups
from db.store import Store

_EVERY_S = 0.3
_GIB = 1 << 30
_PEAKS = ("memory.peak", "memory.max_usage_in_bytes")


@dataclass(frozen=True)
class Sample:
    """The bytes at one moment: of the process that the user starts, of workers, and of Ray's own processes."""

    at: datetime
    driver: int
    workers: int
    ray: int

    @property
    def whole(self) -> int:
        return self.driver + self.workers + self.ray


def is_worker(process: psutil.Process) -> bool:
    """Whether it runs tasks, or waits for one; where it has ended, it holds nothing."""
    try:
        return process.name() in ("ray::_on_worker", "ray::IDLE")
    except psutil.NoSuchProcess:
        return False


def samples(command: list[str], environment: dict[str, str]) -> tuple[list[Sample], int]:
    """The memory of the command, several times a second until it ends, and its exit status."""
    found: list[Sample] = []
    running = subprocess.Popen(command, env=environment)
    driver = psutil.Process(running.pid)
    while running.poll() is None:
        try:
            family = [driver, *driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        own, *others = [(is_worker(process), pss_bytes(process)) for process in family]
        workers, ray = (sum(held for is_one, held in others if is_one is wanted) for wanted in (True, False))
        found.append(Sample(datetime.now(UTC), own[1], workers, ray))
        time.sleep(_EVERY_S)
    return found, running.wait()


def planned_gib(job: Path) -> dict[str, str]:
    """The plan, by the stages of the database: the child is timed in the stage that finds it."""
    found = nas.plan(job, progress=False)
    names = {"time the child": "solve", "evaluate": "heal"}
    needs = [stage.need for stage in found.stages]
    return {names.get(need.stage, need.stage): f"{need.main_bytes(found.machine) / _GIB:.2f}" for need in needs}


def table(store: Store, found: list[Sample], planned: dict[str, str]) -> None:
    """Rows of stages: seconds, and peaks of all processes, of the driver, of all workers and of Ray."""
    heads = ("stage", "seconds", "planned, GiB", "all processes, GiB", "driver", "workers", "Ray")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    ends = found[0].at
    for stage in store.stages(store.searches()[-1].id):
        begin = stage.started_at.replace(tzinfo=UTC)
        until = begin.timestamp() + stage.seconds
        row("before" if ends == found[0].at else "", "", found, ends.timestamp(), begin.timestamp())
        row(stage.name, planned.get(stage.name, ""), found, begin.timestamp(), until)
        ends = datetime.fromtimestamp(until, UTC)
    row("in all", "", found, found[0].at.timestamp(), found[-1].at.timestamp())


def row(name: str, planned: str, found: list[Sample], begin: float, end: float) -> None:
    inside = [sample for sample in found if begin <= sample.at.timestamp() <= end]
    if name and inside:
        peaks = [
            max(getattr(sample, part) for sample in inside) / _GIB for part in ("whole", "driver", "workers", "ray")
        ]
        print(f"| {name} | {end - begin:.0f} | {planned} | {' | '.join(f'{peak:.2f}' for peak in peaks)} |")


def limited() -> None:
    """Tell the peak of every control group around this process that has a limit, by the files of either version."""
    for group in control_groups():
        if group.most_bytes < sys.maxsize:
            peak = next(path for name in _PEAKS if (path := group.folder / name).is_file())
            reached = (group.folder / "memory.failcnt", group.folder / "memory.events")
            often = next(path for path in reached if path.is_file()).read_text().split()
            times = often[0] if len(often) == 1 else dict(zip(often[::2], often[1::2], strict=True))["max"]
            print(
                f"control group: {int(peak.read_text()) / _GIB:.2f} GiB at most of {group.most_bytes / _GIB:.2f}, "
                f"limit reached {times} times"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--nas", type=Path, default=Path(sys.executable).with_name("nas"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        home = asked.home or Path(empty)
        command = [str(asked.nas), "search", str(asked.job)]
        found, status = samples(command, os.environ | {"NAS_HOME": str(home)})
        with Store.open(home / "nas.db") as store:
            table(store, found, planned_gib(asked.job))
    limited()
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {status}")


if __name__ == "__main__":
    main()
