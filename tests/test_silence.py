"""The output of a command while it works, piped: its task at once, and its progress from then on.

Each runs as a user runs it, and every line is heard with the second it came at.
"""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from searches import command, environment, job, started, wait_for
from stored import add_measured, add_search

from benchmarks.silence import Heard, Listened, listen
from db.store import Store

# A machine that is shared with others may keep a process waiting for so long.
_SLACK_S = 8.0


def heard(home: Path, *arguments: str | Path) -> Listened:
    done = listen(command(*arguments), environment(home))
    assert done.status == 0, [line.line for line in done.lines]
    return done


def assert_spoken(done: Listened) -> None:
    assert done.first_s < 2 + _SLACK_S, done.lines[:1]
    assert done.longest.seconds < 10 + _SLACK_S, done.longest


def told(done: Listened, stage: str) -> list[str]:
    """The lines about a stage."""
    return [line.line.removeprefix(f"{stage}: ") for line in done.lines if line.line.startswith(f"{stage}: ")]


def test_silences_are_found() -> None:
    lines = Heard(0.5, "search tiny: loading PyTorch"), Heard(3.0, "distil blocks"), Heard(4.0, "score options")
    done = Listened(lines, 14.0, 0)
    assert (done.first_s, done.longest.seconds, done.longest.after) == (0.5, 10.0, "score options")
    silent = Listened((), 14.0, 0)
    assert (silent.first_s, silent.longest.seconds, silent.longest.after) == (14.0, 14.0, "")


def test_what_a_command_says_is_heard_as_it_comes() -> None:
    done = listen(["sh", "-c", "echo one; sleep 0.5; echo two >&2; exit 3"])
    assert [line.line for line in done.lines] == ["one", "two"]
    assert done.lines[1].second - done.lines[0].second >= 0.4
    assert done.status == 3


@pytest.mark.slow
def test_a_search_is_never_silent(tmp_path: Path) -> None:
    """Long enough for lines in the midst of its stages: what a person expects is the tokens that the job asks for."""
    data: dict[str, Any] = {"distillation_tokens": 32768, "score_tokens": 8192, "evaluation_tokens": 4096}
    file = job(tmp_path, data=data, heal={"tokens": 32768}, measure={"tolerance": 0.001, "time_limit": "4 s"})
    done = heard(tmp_path / "home", "search", file)
    assert_spoken(done)
    assert done.lines[0].line == "search tiny: loading PyTorch"
    for stage, unit in {
        "distil blocks": "of 32,768 tokens, ",
        "score options": "of 8,192 tokens, ",
        "heal child": "of 32,768 tokens, ",
        "measure child": "of 12 s at most, ",
    }.items():
        assert any(unit in line for line in told(done, stage)), (stage, told(done, stage))
    assert any(" left" in line for line in told(done, "distil blocks"))
    assert any(" stacks, " in line for line in told(done, "measure costs"))
    home = tmp_path / "home"
    for arguments in (
        ("compare", "tiny", "--evaluations", "32"),
        ("solve", "tiny", "--budget", "parameters=70%", "--refine", "24"),
        ("pool", "tiny", "--count", "40"),
        ("pareto", "tiny", "--cost", "memory"),
        ("report", "tiny", "--out", tmp_path / "report.html"),
        ("export", "1", "--out", tmp_path / "child"),
        ("dependency", "embedded"),
    ):
        assert_spoken(heard(home, *map(str, arguments)))


@pytest.mark.slow
def test_whole_models_are_counted_over_all_rounds(copy: Path) -> None:
    with sqlite3.connect(copy / "home/nas.db") as connection:
        connection.execute("UPDATE search SET request = json_set(request, '$.home', ?)", [str(copy / "home")])
    connection.close()
    done = heard(copy / "home", "solve", "tiny", "--budget", "parameters=70%", "--refine", "96")
    assert_spoken(done)
    assert any("of 96 models" in line for line in told(done, "refine")), done.lines


def test_a_locked_database_is_told_of(tmp_path: Path) -> None:
    """Heard from the other side: it is freed only when we were told that it is waited for."""
    home = tmp_path / "home"
    with Store.open(home / "nas.db") as store:
        add_measured(store, add_search(store, tmp_path))
    other = sqlite3.connect(home / "nas.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    running = started(home, "solve", "stories-60", "--budget", "latency=70%")
    said = wait_for(running, f"{home}/nas.db is locked by another process; waiting, for 60 s at most")
    other.execute("ROLLBACK")
    other.close()
    rest, _ = running.communicate(timeout=120)
    assert running.returncode == 0, said + rest
    assert "latency 70%" in rest
