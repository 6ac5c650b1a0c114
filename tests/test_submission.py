"""Searches submitted to a Ray head of another process, through its Jobs API and our command line."""

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from heads import Head, a_head, free_ports
from searches import command, environment, files, job, nas, outcome, rows, the_error


@pytest.fixture(scope="module")
def a_head_here() -> Iterator[Head]:
    """A Ray head of our own."""
    with a_head() as found:
        yield found


@pytest.fixture
def head(a_head_here: Head) -> str:
    """The address of its dashboard."""
    return a_head_here.dashboard


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


def test_a_flag_beats_the_variables(head: str, timed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray lets either of them win."""
    (port,) = free_ports(1)
    for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        line = command("status", "raysubmit_nothing", "--address", head.removeprefix("http://"))
        known = environment(timed / "home") | {variable: f"http://127.0.0.1:{port}"}
        done = subprocess.run(line, env=known, capture_output=True, text=True, timeout=120)
        assert "the cluster knows no job raysubmit_nothing" in the_error(done.stderr)


def test_what_the_head_lacks_is_told_before_the_search_begins(head: str, timed: Path) -> None:
    """In the words of `on_head.py`; the database's password is nowhere to be read."""
    file = job(timed, home="/dev/null/home", ray={"address": "auto"})
    done = nas(timed / "home", "submit", file, "--address", head, "--db", "postgresql://me:secret@127.0.0.1:1/nas")
    assert done.returncode == 1
    error = the_error(done.stderr)
    assert error.startswith(f"error: the head at {head} (--address): home: /dev/null/home cannot be written there")
    assert "the database's server 127.0.0.1:1 cannot be reached from there" in error
    assert "secret" not in done.stdout + done.stderr
    assert "ray.address: auto is ignored" in done.stdout
    for asked in ("status", "logs"):
        told = nas(timed / "home", asked, _number(done.stdout), "--address", head)
        assert "FAILED" in told.stdout + told.stderr
        assert "secret" not in told.stdout + told.stderr


def test_a_token_that_is_not_shown_is_asked_for(head: str, tmp_path: Path) -> None:
    """A head asks for one unless told not to."""
    known = environment(tmp_path) | {"RAY_AUTH_MODE": "disabled"}
    line = command("status", "raysubmit_nothing", "--address", head)
    done = subprocess.run(line, env=known, capture_output=True, text=True, timeout=120)
    assert "asks for its token; put it in ~/.ray/auth_token" in the_error(done.stderr)


def test_a_search_joins_a_cluster_by_its_port(a_head_here: Head, copy: Path) -> None:
    """Which asks for the token as well. The child is all that is left to do."""
    changed = {"ray": {"address": a_head_here.cluster}, "heal": {"tokens": 1024}}
    done = nas(copy / "home", "search", job(copy, **changed))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [trial["heal_tokens"] for trial in rows(copy / "home", "trial")] == [2048, 1024]


@pytest.mark.slow
def test_a_head_without_an_agent_is_told_with_the_remedy(timed: Path) -> None:
    """Another program has its agent's port."""
    with socket.create_server(("0.0.0.0", 0)) as taken, a_head(agent=taken.getsockname()[1]) as head:
        done = nas(timed / "home", "submit", timed / "job.yaml", "--address", head.dashboard)
    assert done.returncode == 1
    assert "it has no agent" in the_error(done.stderr)
    assert "--dashboard-agent-listen-port" in the_error(done.stderr)


def test_a_job_the_head_does_not_know_is_a_clear_error(head: str, tmp_path: Path) -> None:
    for asked in ("status", "logs", "stop"):
        done = nas(tmp_path, asked, "raysubmit_nothing", "--address", head)
        assert done.returncode == 1
        assert "the cluster knows no job raysubmit_nothing" in the_error(done.stderr)


def test_where_no_head_answers_it_says_so(finished: Path) -> None:
    (port,) = free_ports(1)
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
