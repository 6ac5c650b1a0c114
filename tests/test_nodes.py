"""A search on a cluster of two nodes: their homes must be one, and one of them may die."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from heads import Head, a_head, a_node, end
from searches import job, nas, outcome, parent_folder, rows, started, the_error


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with a_head(cpus=1) as found:
        yield found


def apart(folder: Path) -> list[str]:
    """The beginning of a command that sees an empty folder in this one's place."""
    found = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {folder} && exec "$@"', "sh"]
    if subprocess.run([*found, "true"], capture_output=True).returncode:
        pytest.skip("this user cannot give a process a folder of its own at the same path")
    return found


def test_a_home_that_a_node_does_not_see_is_refused(head: Head, timed: Path) -> None:
    """Before anything is trained: its results would be lost, and trained again at each run."""
    home = timed / "home"
    with a_node(head, before=apart(home)):
        done = nas(home, "search", job(timed, ray={"address": head.cluster}))
    assert done.returncode == 1
    said = the_error(done.stderr)
    assert f"home {home} must be one folder that every node reads and writes" in said
    assert "does not see a file that was just written there" in said
    assert not rows(home, "search")
    assert not list(home.glob(".seen-*"))


@pytest.mark.slow
def test_a_parent_that_a_node_does_not_see_is_refused(head: Head, timed: Path) -> None:
    home, parent = timed / "home", timed / "parent"
    shutil.copytree(parent_folder(), parent)
    with a_node(head, before=apart(parent)):
        done = nas(home, "search", job(timed, parent=str(parent), ray={"address": head.cluster}))
    assert done.returncode == 1
    said = the_error(done.stderr)
    assert "every node must read the parent's files, and " in said
    assert f"{parent / 'model.safetensors'}: is not there" in said
    assert not rows(home, "search")


@pytest.mark.slow
def test_a_node_that_dies_costs_no_row(head: Head, timed: Path, finished: Path) -> None:
    home = timed / "home"
    changed = {"ray": {"address": head.cluster, "layers_per_task": 1}}
    with a_node(head) as node:
        running = started(home, "search", job(timed, **changed))
        # A library file of each of several layers: both nodes are at work.
        deadline = time.monotonic() + 300
        while len(list(home.rglob("library/*/*.safetensors"))) < 12 and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = [child for child in psutil.Process(node.pid).children(recursive=True) if "ray::" in child.name()]
        end(node)
        said, _ = running.communicate(timeout=600)
    assert workers, "the node had no work"
    assert running.returncode == 0, said
    here, whole = outcome(home), outcome(finished / "home")
    # One core heals here, and two there: the mean of a loss that is noted differs in its last bit.
    noted, wanted = (
        [json.loads(trial.pop("heal_curve") or "[]") for trial in found["trial"]] for found in (here, whole)
    )
    assert noted == [[pytest.approx(point, rel=1e-6) for point in curve] for curve in wanted]
    assert here == whole
