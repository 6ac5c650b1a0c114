"""`nas trials --delete`: what goes, what stays, and who is asked."""

import json
import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from searches import Here, command, environment, the_error
from stored import add_measured, add_search, add_trial

from db import models
from db.store import Store
from nas.files.forget import Numbers
from nas.files.home import child_file


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a search of four trials, the first of them built, and another search with one."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("NAS_HOME", str(home))
    with Store.open(home / "nas.db") as store:
        search = add_search(store, tmp_path, name="s")
        add_measured(store, search)
        for budget in (90, 80, 70, 60):
            built = 1.0 if budget == 90 else None
            add_trial(store, search, f"latency={budget}%", built)
        other = store.add_search(models.SearchRow(**_columns(search) | {"id": "0the7", "name": "other"}))
        add_measured(store, other)
        add_trial(store, other, "latency=50%", None)
        (first,) = store.trials(where="kl is not None")
        file = child_file(home, first.child_key)
        file.parent.mkdir()
        file.write_bytes(b"weights")
        (home / "checkpoints" / first.child_key).mkdir(parents=True)
        (home / "exports").mkdir()
        store.own_child_path(first.id, str(home / "exports"), "hf")
    return home


def _columns(row: models.SearchRow | models.TrialRow) -> dict[str, Any]:
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}


def left(home: Path) -> list[int]:
    with Store.open(home / "nas.db") as store:
        return [trial.id for trial in store.trials()]


def scores(home: Path) -> int:
    with Store.open(home / "nas.db") as store:
        return sum(known.score is not None for search in store.searches() for known in store.options(search.id))


Said = Callable[..., str]


@pytest.fixture
def said(here: Here, home: Path) -> Said:
    def run(*arguments: str) -> str:
        done = here(home, "trials", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize(
    ("arguments", "there"),
    [
        (["--ids", "2,4", "--delete", "--yes"], [1, 3, 5]),
        (["--ids", "2-3,5", "--delete", "--yes"], [1, 4]),
        (["--ids", "2-99999999999999999999999999", "--delete", "--yes"], [1]),
        (["s", "--delete", "--yes"], [5]),
        (["other", "--delete", "--yes"], [1, 2, 3, 4]),
        (["--where", "not kl < 9", "--delete", "--yes"], [1, 2, 3, 4, 5]),
        (["--where", "kl is None", "--delete", "--yes"], [1]),
        (["s", "--where", "kl is None", "--delete", "--yes"], [1, 5]),
        (["s", "--sort", "score", "--descending", "--limit", "1", "--delete", "--yes"], [1, 2, 3, 5]),
        (["s", "--ids", "1-4", "--sort", "score", "--limit", "2", "--delete", "--yes"], [3, 4, 5]),
        (["--ids", "2,4"], [1, 2, 3, 4, 5]),
    ],
)
def test_those_that_would_be_listed_go(said: Said, home: Path, arguments: list[str], there: list[int]) -> None:
    before = scores(home)
    listed = [part for part in arguments if part not in ("--delete", "--yes")]
    would = {trial["id"] for trial in json.loads(said(*listed, "--json"))}
    told = said(*arguments, "--json")
    assert left(home) == there
    if "--delete" in arguments:
        assert set(json.loads(told)["deleted"]) == would == {1, 2, 3, 4, 5} - {*there}
    assert scores(home) == before > 0, "what was measured of blocks stays"


def test_a_child_goes_with_its_last_trial_and_its_export_stays(said: Said, home: Path) -> None:
    with Store.open(home / "nas.db") as store:
        first = store.trial(1)
        same = {name: value for name, value in _columns(first).items() if name != "id"}
        twin = store.add_trial(models.TrialRow(**same | {"key": "twin", "child_path": None}))
    file = child_file(home, first.child_key)
    assert f"left as it is: the exported child {home}/exports" in said("--ids", "1", "--delete", "--yes")
    assert file.is_file(), "another trial is this child"
    told = json.loads(said("--ids", str(twin.id), "--delete", "--yes", "--json"))
    assert told == {"deleted": [twin.id], "files": [str(file)], "exports_left": [], "notes": []}
    assert not file.exists()
    assert not (home / "checkpoints" / first.child_key).exists()
    assert (home / "exports").is_dir()


def test_a_child_that_is_being_made_stays(said: Said, home: Path) -> None:
    with Store.open(home / "nas.db") as store:
        key = store.trial(1).child_key
    with FileLock(home / "checkpoints" / f"{key}.lock"):
        (note,) = json.loads(said("--ids", "1", "--delete", "--yes", "--json"))["notes"]
    assert note == f"{child_file(home, key)} stays: another process is making that child"
    assert child_file(home, key).is_file()


def test_a_home_that_is_elsewhere_is_no_mistake(said: Said, home: Path) -> None:
    with Store.open(home / "nas.db") as store:
        child_file(home, store.trial(1).child_key).unlink()
    assert json.loads(said("s", "--delete", "--yes", "--json"))["files"] == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--delete", "--yes"], "--delete would delete all trials; name a search, or give --where or --ids"),
        (["--ids", "2", "--delete"], "--delete: there is no terminal to ask on; give --yes to delete them"),
        (["--yes"], "--yes does nothing without --delete; give both"),
        (["--ids", "2,99", "--delete", "--yes"], "--ids 99: there is no such trial among those asked for"),
        (["other", "--ids", "2", "--delete", "--yes"], "--ids 2: there is no such trial among those asked for"),
        (["nowhere", "--delete", "--yes"], "no search 'nowhere'"),
        (["--where", "zzz < 1", "--delete", "--yes"], "no column 'zzz'"),
    ],
)
def test_what_is_not_clear_deletes_nothing(
    here: Here, home: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: str
) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        done = here(home, "trials", *arguments)
    assert done.returncode in (1, 2)
    assert the_error(done.stderr).startswith(f"error: {error}")
    assert left(home) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("typed", "there", "status"),
    [("y\n", [3, 4, 5], 0), ("n\n", [1, 2, 3, 4, 5], 1), ("\n", [1, 2, 3, 4, 5], 1)],
)
def test_a_terminal_is_asked(home: Path, typed: str, there: list[int], status: int) -> None:
    terminal, other_end = pty.openpty()
    with os.fdopen(terminal, "w") as keyboard:
        running = subprocess.Popen(
            command("trials", "--ids", "1-2", "--delete"), env=environment(home), stdin=other_end,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        keyboard.write(typed)
        keyboard.flush()
        output, _ = running.communicate(timeout=120)
    os.close(other_end)
    assert running.returncode == status, output
    assert "latency=90%" in output, "what goes is shown"
    assert "search s (5ea5c4) is running, or was killed" in output
    assert "delete these?" in output
    assert ("nothing was deleted" in output) == bool(status)
    assert left(home) == there


def test_how_numbers_of_trials_are_written() -> None:
    assert Numbers.parse("3,5,8-12").ranges == ((3, 3), (5, 5), (8, 12))
    assert Numbers.parse(" 3 , 8 - 12 ").ranges == ((3, 3), (8, 12))
    for text in ("", "x", "3,", "-3", "3-", "3-x", "1.5", "12-8", "²", "9" * 5000):
        with pytest.raises(ValueError, match=r"write numbers of trials, like 3,5,8-12"):
            Numbers.parse(text)
