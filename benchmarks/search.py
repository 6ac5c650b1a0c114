"""One search from outside: wall time, peak memory of all its processes, the second run, and whether the budget was met.

    python benchmarks/search.py JOB --home FOLDER [--out results.json]

Runs `nas search JOB` in a process of its own, Ray included, and sums what every process of its tree holds (PSS, so that
memory they share counts once), once a second. Then runs it again: that must do no work.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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


def run(job: Path, environment: dict[str, str]) -> dict[str, Any]:
    started, peak = time.monotonic(), 0
    command = [sys.executable, "-m", "nas.cli", "search", str(job), "--json"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while process.poll() is None:
            peak = max(peak, sum(held_bytes(each) for each in tree(process.pid)))
            time.sleep(1)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"nas search ended with {process.returncode}")
    return {"seconds": time.monotonic() - started, "peak_gib": peak / 2**30, "trial": json.loads(process.stdout.read())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--home", type=Path, required=True, help="an empty folder for library and database")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    environment = os.environ | {"NAS_HOME": str(arguments.home.resolve())}
    environment.pop("NAS_DB", None)
    first, second = run(arguments.job, environment), run(arguments.job, environment)
    trial = first["trial"]
    with Store.open(str(arguments.home / "nas.db")) as store:
        stages = store.stages(trial["search_id"])
    again = stages[len(stages) // 2 :] if len(stages) % 2 == 0 else stages
    work = {stage.name: stage.work_done for stage in stages[-5:]}
    print(f"first run:  {first['seconds']:.0f} s, peak memory {first['peak_gib']:.2f} GiB")
    print(
        f"second run: {second['seconds']:.0f} s, work done {work}, same trial: {second['trial']['id'] == trial['id']}"
    )
    print(
        f"latency: predicted {trial['predicted_latency_s'] * 1e3:.1f} ms, measured "
        f"{trial['latency_ratio']:.1%} ± {trial['latency_spread']:.1%}; "
        f"loss {trial['lm_loss']:.4f}, KL {trial['kl']:.4f}"
    )
    for stage in again:
        print(f"  {stage.name}: {stage.seconds:.1f} s, {stage.work_done} done")
    if arguments.out:
        arguments.out.write_text(json.dumps({"first": first, "second": second}, indent=1))


if __name__ == "__main__":
    main()
