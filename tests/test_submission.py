"""Searches submitted to a Ray head of another process, through its Jobs API and our command line."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from searches import environment, files, job, nas, outcome, rows, the_error

_BINARIES = Path(sys.executable).parent


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a Ray head of our own: its ports free ones, its folder apart, its end with its process group."""
    folder = Path(tempfile.mkdtemp(prefix="r_", dir="/tmp"))  # Ray's sockets lie in it, and their paths must be short
    port, dashboard, client, agent = _free_ports(4)
    line = [str(_BINARIES / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats",
            f"--temp-dir={folder}", f"--port={port}", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]  # fmt: skip
    # A head is often started by its full path: what `python` means there is none of a job's business.
    known = environment(folder) | {"PATH": "/usr/bin:/bin"}
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(line, env=known, stdout=output, stderr=output, process_group=0)
    try:
        _wait_until_listening(process, dashboard, folder / "output")
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        # Asked to end, it takes half a minute.
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        for left in family:
            with suppress(psutil.NoSuchProcess):
                left.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports


def _wait_until_listening(process: "subprocess.Popen[bytes]", port: int, output: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the head did not start:\n{output.read_text()}")


def _number(said: str) -> str:
    found = re.search(r"submitted (raysubmit_\w+);", said)
    assert found, said
    return found[1]


def test_a_submitted_search_ends_like_one_run_here(head: str, finished: Path, timed: Path) -> None:
    home = timed / "home"
    done = nas(home, "submit", timed / "job.yaml", "--address", head)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "distil blocks: " in done.stdout
    assert "KL to the parent" in done.stdout
    assert outcome(home) == outcome(finished / "home")

    number = _number(done.stdout)
    assert nas(home, "status", number, "--address", head).stdout.startswith("SUCCEEDED")
    logs = nas(home, "logs", number, "--address", head)
    assert logs.returncode == 0
    assert logs.stdout in done.stdout


def test_a_job_the_head_does_not_know_is_a_clear_error(head: str, tmp_path: Path) -> None:
    for command in ("status", "logs", "stop"):
        done = nas(tmp_path, command, "raysubmit_nothing", "--address", head)
        assert done.returncode == 1
        assert "the cluster knows no job raysubmit_nothing" in the_error(done.stderr)


def test_where_no_head_answers_it_says_so(finished: Path) -> None:
    (port,) = _free_ports(1)
    done = nas(finished / "home", "submit", finished / "job.yaml", "--address", f"http://127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"no Ray head answers at http://127.0.0.1:{port}" in the_error(done.stderr)


@pytest.mark.slow
def test_a_job_that_fails_fails_its_submitter(head: str, timed: Path) -> None:
    done = nas(timed / "home", "submit", job(timed, budget={"memory": "1 KiB"}), "--address", head)
    assert done.returncode == 1
    assert "error: memory" in done.stdout or "the least reachable is" in done.stdout
    assert re.search(r"job raysubmit_\w+ ended as FAILED", the_error(done.stderr))


@pytest.mark.slow
def test_a_stopped_job_goes_on_when_it_is_submitted_again(head: str, finished: Path, timed: Path) -> None:
    home = timed / "home"
    file = job(timed, ray={"layers_per_task": 1})
    number = _number(nas(home, "submit", file, "--address", head, "--no-wait").stdout)
    deadline = time.monotonic() + 240
    while not rows(home, "distillation"):
        assert time.monotonic() < deadline, nas(home, "logs", number, "--address", head).stdout
        time.sleep(0.1)
    stopped = nas(home, "stop", number, "--address", head)
    assert stopped.stdout.strip() == "STOPPED"
    built, written = files(home), {row["key"]: row for row in rows(home, "distillation")}
    assert 0 < len(written) < len(rows(finished / "home", "distillation"))

    again = nas(home, "submit", file, "--address", head)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {row["key"]: row for row in rows(home, "distillation")}.items() >= written.items()
    assert files(home).items() >= built.items()
    assert outcome(home) == outcome(finished / "home")
