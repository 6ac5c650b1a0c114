"""One search from outside: wall time, peak memory, the longest silence, the second run, and whether the budget was met.

    python benchmarks/search.py JOB --home FOLDER [--out results.json]

Runs `nas search JOB` in a process of its own, Ray included, passes on what it prints, and sums once a second the memory
of every process of its tree (PSS, so that shared memory counts once). Then runs it again: that must do no work.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

from silence import listen

from db import models
from db.store import Store


def tree(root: int) -> list[int]:
    """A process and everything below it. Linux only."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def held_bytes(process: int) -> int:
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # ended meanwhile
    return 0


def peak_of(process: int) -> Callable[[], int]:
    """Watches what a process and everything below it hold, until it ends; the answer is the most, in bytes."""
    peak = 0

    def watch() -> None:
        nonlocal peak
        while Path(f"/proc/{process}").exists():
            peak = max(peak, sum(map(held_bytes, tree(process))))
            time.sleep(1)

    Thread(target=watch, daemon=True).start()
    return lambda: peak


def run(job: Path, environment: dict[str, str]) -> dict[str, Any]:
    peaks: list[Callable[[], int]] = []
    command = [sys.executable, "-m", "nas.cli.main", "search", str(job)]
    done = listen(command, environment, show=True, begun=lambda process: peaks.append(peak_of(process)))
    if done.status:
        raise SystemExit(f"nas search ended with {done.status}")
    longest = done.longest
    return {
        "seconds": done.seconds,
        "peak_gib": peaks[0]() / 2**30,
        "first_line_s": done.first_s,
        "longest_silence_s": longest.seconds,
        "silent_after": longest.after,
    }


def stored(home: Path) -> tuple[models.TrialRow, list[models.StageRow]]:
    """The trial that was built, and all stages of the one search of a home."""
    with Store.open(home / "nas.db") as store:
        (search,) = store.searches()
        built = [trial for trial in store.trials(search.id) if trial.kl is not None]
        return built[-1], store.stages(search.id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--home", type=Path, required=True, help="an empty folder for library and database")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    environment = os.environ | {"NAS_HOME": str(arguments.home.resolve())}
    environment.pop("NAS_DB", None)
    first = run(arguments.job, environment)
    trial, before = stored(arguments.home)
    second = run(arguments.job, environment)
    again, stages = stored(arguments.home)
    print(
        f"\nfirst run:  {first['seconds']:.0f} s, peak memory {first['peak_gib']:.2f} GiB; first line after "
        f"{first['first_line_s']:.1f} s, longest silence {first['longest_silence_s']:.1f} s, after: "
        f"{first['silent_after']}"
    )
    work = {stage.name: stage.work_done for stage in stages[len(before) :]}
    print(f"second run: {second['seconds']:.0f} s, work done {work}, same trial: {again.id == trial.id}")
    print(
        f"latency: predicted {trial.predicted_latency_s * 1e3:.1f} ms, measured "
        f"{trial.latency_ratio:.1%} ± {trial.latency_ratio * trial.latency_spread:.1%}; "
        f"loss {trial.lm_loss:.4f}, KL {trial.kl:.4f}"
    )
    for stage in before:
        print(f"  {stage.name}: {stage.seconds:.1f} s, {stage.work_done} done")
    if arguments.out:
        arguments.out.write_text(json.dumps({"first": first, "second": second}, indent=1))


if __name__ == "__main__":
    main()
