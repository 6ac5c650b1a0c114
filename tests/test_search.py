"""Whole searches: what one leaves behind, that a second does nothing, that a stopped one ends as if never stopped."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from searches import (
    Here,
    assert_files_are_whole,
    command,
    environment,
    files,
    job,
    nas,
    outcome,
    rows,
    started,
    stop_group,
    the_error,
    wait_for,
)

from cost_models.metrics import METRICS

_TABLES = ("search", "option", "score", "cost", "distillation", "trial")


def _stages(home: Path) -> dict[str, int]:
    return {row["name"]: row["work_done"] for row in rows(home, "stage")}


def test_a_search_ends_with_a_child_and_all_it_measured(finished: Path) -> None:
    home = finished / "home"
    (search,), (trial,) = rows(home, "search"), rows(home, "trial")
    assert search["status"] == "finished"
    # Only `nas compare` asks for the untrained child's KL on the score text, and only a budget for energy.
    assert {name for name, value in trial.items() if value is None} == {"kl_whole", *METRICS["energy"].columns}
    assert trial["predicted_parameters"] <= 0.75 * json.loads(search["parent_costs"])["whole"]["parameters"]
    assert trial["predicted_parameters"] == trial["parameters"]
    assert trial["heal_tokens"] == 2048
    assert trial["kl"] != trial["kl_before_heal"]
    stages = _stages(home)
    options = rows(home, "option")
    assert stages["distil"] == len(rows(home, "distillation")) > 0
    assert stages["score"] == len(rows(home, "score")) == sum(option["score_key"] is not None for option in options)
    assert stages["measure"] > 0
    assert (home / "reports" / f"{search['id']}.html").is_file()
    assert Path(trial["child_path"], "config.json").is_file()
    assert "KL to the parent" in (finished / "output").read_text()
    assert_files_are_whole(home)


@pytest.mark.usefixtures("ray_here")
def test_a_second_run_measures_nothing_and_trains_nothing(here: Here, copy: Path) -> None:
    home = copy / "home"
    assert here(home, "search", copy / "job.yaml").returncode == 0
    # The first run in a copy writes down where its child lies now; from then on nothing changes at all.
    before = {table: rows(home, table) for table in _TABLES}
    files_before, stages_before = files(home), len(rows(home, "stage"))
    assert here(home, "search", copy / "job.yaml").returncode == 0
    again = rows(home, "stage")[stages_before:]
    assert {"distil", "score", "measure", "solve"} <= {row["name"] for row in again}
    assert {row["name"]: row["work_done"] for row in again if row["work_done"]} == {}
    assert files(home) == files_before
    after = {table: rows(home, table) for table in _TABLES}
    for known in (before, after):
        for search in known["search"]:
            del search["updated_at"]
    assert after == before


def test_stopped_by_the_user_then_killed_it_ends_the_same(finished: Path, timed: Path) -> None:
    home, file = timed / "home", timed / "job.yaml"
    running = started(home, "search", file)
    wait_for(running, "distil blocks: ")
    said = stop_group(running, signal.SIGINT)
    assert running.returncode == 130
    assert said.splitlines()[-1] == "interrupted; finished work is kept, and the same command resumes"
    assert "Traceback" not in said
    assert [search["status"] for search in rows(home, "search")] == ["interrupted"]
    assert_files_are_whole(home)
    assert list(home.glob(".*")) == [], "the parent's activations went with the process"

    running = started(home, "search", file)
    wait_for(running, "score options: ")
    stop_group(running, signal.SIGKILL)
    assert_files_are_whole(home)

    done = nas(home, "search", file)
    assert done.returncode == 0, done.stderr
    assert outcome(home) == outcome(finished / "home")
    assert [search["status"] for search in rows(home, "search")] == ["finished"]
    assert list(home.glob(".*")) == [], "those of the killed process, too"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_any_moment_it_ends_the_same(finished: Path, timed: Path, seed: int) -> None:
    home, file = timed / "home", timed / "job.yaml"
    whole_s = sum(row["seconds"] for row in rows(finished / "home", "stage") if row["name"] != "measure")
    moments = random.Random(seed)
    for _ in range(3):
        running = started(home, "search", file)
        wait_for(running, "search tiny (")
        try:
            running.wait(moments.uniform(0, whole_s))
        except subprocess.TimeoutExpired:
            stop_group(running, signal.SIGKILL)
            assert_files_are_whole(home)
        else:
            running.communicate()
    done = nas(home, "search", file)
    assert done.returncode == 0, done.stderr
    assert outcome(home) == outcome(finished / "home")


@pytest.mark.slow
def test_a_killed_worker_costs_one_task(finished: Path, timed: Path) -> None:
    home = timed / "home"
    running = started(home, "search", timed / "job.yaml")
    wait_for(running, "distil blocks: ")
    os.kill(_busy_worker(running.pid).pid, signal.SIGKILL)
    said, _ = running.communicate(timeout=240)
    assert running.returncode == 0, said
    assert outcome(home) == outcome(finished / "home")


def _busy_worker(driver: int) -> psutil.Process:
    """A worker that runs a task of this driver; Ray names it so."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for process in psutil.Process(driver).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith("ray::_on_work") or "ray::_on_worker" in " ".join(process.cmdline()):
                    return process
        time.sleep(0.05)
    pytest.fail("no worker runs a task")


@pytest.mark.usefixtures("ray_here")
def test_distillation_that_diverges_is_an_error_with_a_place(here: Here, timed: Path) -> None:
    file = job(timed, distill={"learning_rate": 1e30, "least_squares": False})
    done = here(timed / "home", "search", file)
    assert done.returncode == 1
    error = the_error(done.stderr)
    assert re.match(r"error: L\d+\.(attention|ffn)=.* loss is (nan|inf).*distill\.learning_rate", error), error
    (search,), (failure,) = rows(timed / "home", "search"), rows(timed / "home", "failure")
    assert search["status"] == "failed"
    assert failure["reason"] == error.removeprefix("error: ")
    assert rows(timed / "home", "trial") == []


@pytest.mark.usefixtures("ray_here")
def test_a_budget_out_of_reach_ends_a_search_with_what_is_in_reach(here: Here, copy: Path) -> None:
    file = job(copy, budget={"memory": "1 KiB"})
    done = here(copy / "home", "search", file)
    assert done.returncode == 1
    assert "memory 1.00 KiB: the least reachable is " in the_error(done.stderr)
    assert [search["status"] for search in rows(copy / "home", "search")] == ["failed"]
    assert len(rows(copy / "home", "trial")) == 1


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0,
    reason="mounting a small disk is not permitted here",
)
@pytest.mark.parametrize("size", ["64k", "1m"])
def test_a_full_disk_ends_with_a_clear_line(timed: Path, tmp_path: Path, size: str) -> None:
    """On a disk as small as that: the database fills the first, the library the second."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size="$1" none "$2"; shift 2; exec "$@"'
    line = ["unshare", "-m", "sh", "-c", script, "sh", size, str(disk), *command("search", timed / "job.yaml")]
    done = subprocess.run(line, env=environment(disk), capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "full" in the_error(done.stderr) or "No space left" in the_error(done.stderr)
