"""A database that a command only reads: none is made where there is none, one of another program is left as it is, and
one that nobody may write is read all the same."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rows import search, trial
from searches import Here, environment, the_error
from stored import add_measured, add_search, add_trial

from db.errors import DatabaseError, DatabaseTooNewError, ForeignDatabaseError
from db.migrate import VERSION_TABLE
from db.store import Store

READING: dict[str, Sequence[str]] = {
    "trials": ["trials"],
    "trials of a search": ["trials", "s", "--where", "kl < 1"],
    "delete": ["trials", "s", "--delete", "--yes"],
    "show": ["show", "1"],
    "solve": ["solve", "s", "--budget", "latency=50%"],
    "refine": ["solve", "s", "--budget", "latency=50%", "--refine", "2"],
    "pareto": ["pareto", "s"],
    "pool": ["pool", "s"],
    "compare": ["compare", "s"],
    "report": ["report", "s", "--out", "never.html"],
    "export": ["export", "1", "--out", "never"],
}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("arguments", READING.values(), ids=READING)
def test_a_database_that_is_not_there_is_not_made(here: Here, tmp_path: Path, arguments: Sequence[str]) -> None:
    for name in ("nas.db", "old-nas.db", "notes.txt"):
        (tmp_path / name).touch()
    for typo, said in (
        (
            "nsa.db",
            f"there is no database {tmp_path}/nsa.db; beside it there is {tmp_path}/nas.db, {tmp_path}/old-nas.db",
        ),
        ("", f"{tmp_path} is a folder, not a database; beside it there is {tmp_path}/nas.db"),
        ("deep/nas.db", f"there is no database {tmp_path}/deep/nas.db; there is no folder {tmp_path}/deep"),
    ):
        done = here(tmp_path / "home", *arguments, "--db", tmp_path / typo)
        assert done.returncode == 1
        assert the_error(done.stderr).startswith(f"error: {said}")
    assert files(tmp_path) == {"nas.db", "old-nas.db", "notes.txt"}


def test_nor_is_the_usual_one(here: Here, tmp_path: Path) -> None:
    done = here(tmp_path / "home", "trials")
    assert done.returncode == 1
    assert the_error(done.stderr) == (
        f"error: there is no database {tmp_path}/home/nas.db; there is no folder {tmp_path}/home; name another with "
        "--db, NAS_DB or NAS_HOME"
    )
    (tmp_path / "home").mkdir()
    assert "`nas search` makes one" in the_error(here(tmp_path / "home", "trials").stderr)
    assert files(tmp_path / "home") == set()


def test_an_empty_file_is_not_filled(here: Here, tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    for arguments in (["trials"], ["solve", "s", "--budget", "latency=50%"]):
        done = here(tmp_path, *arguments, "--db", tmp_path / "empty.db")
        assert "empty.db holds none of our tables" in the_error(done.stderr)
    assert (tmp_path / "empty.db").stat().st_size == 0
    assert files(tmp_path) == {"empty.db"}


def test_a_database_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE trial (id INTEGER PRIMARY KEY, patient TEXT)")
        connection.execute("INSERT INTO trial VALUES (1, 'x')")
    connection.close()
    before = path.read_bytes()
    for access in ("create", "write", "read"):
        with pytest.raises(
            ForeignDatabaseError, match=r"theirs\.db has a table trial of another program.*name another database"
        ):
            Store.open(path, access)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert files(tmp_path) == {"theirs.db"}


def test_a_database_of_another_program_is_shared_where_no_name_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY)")
    connection.close()
    with pytest.raises(ForeignDatabaseError, match="holds none of our tables"):
        Store.open(path, "read")
    with Store.open(path) as store:
        assert store.trials() == []


@pytest.mark.parametrize("damage", ["DROP TABLE trial", "ALTER TABLE trial DROP COLUMN kl"])
def test_tables_that_are_not_as_we_made_them_are_told_of(tmp_path: Path, damage: str) -> None:
    Store.open(tmp_path / "nas.db").close()
    with sqlite3.connect(tmp_path / "nas.db") as connection:
        connection.execute(damage)
    connection.close()
    with (
        Store.open(tmp_path / "nas.db", "read") as store,
        pytest.raises(DatabaseError, match=r"nas\.db: no such (table|column).*restore a copy"),
    ):
        store.trials()


# --- nobody may write -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not `tmp_path`, whose parents are closed to others."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    made.chmod(0o755)
    shutil.rmtree(made)


def closed(folder: Path) -> Path:
    """A folder in which nobody but root may write."""
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    return folder


class AsNobody:
    """Root may write everywhere, so it becomes somebody else for a while."""

    def __enter__(self) -> None:
        self._is_root = os.geteuid() == 0
        if self._is_root:
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        if self._is_root:
            os.seteuid(0)


def test_a_database_that_may_not_be_written_is_read(folder: Path) -> None:
    with Store.open(folder / "nas.db") as store:
        store.add_search(search())
        store.add_trial(trial("t1", child_key="c", kl=0.25))
    assert files(folder) == {"nas.db"}, "no write-ahead log is left"
    closed(folder)
    with AsNobody():
        with Store.open(folder / "nas.db", "read") as store:
            assert store.is_read_only
            assert [found.kl for found in store.trials(where="kl < 1")] == [0.25]
            assert store.find_search("llama-60").id == "5ea5c4"
            proposed = store.as_added(trial("t2", child_key="c"))
            assert (proposed.id, proposed.kl) == (None, 0.25)
            assert store.as_added(trial("t1", child_key="c")).id == 1
            with pytest.raises(DatabaseError, match=r"nas\.db: it cannot be written; allow writing"):
                store.update_trial(1, kl=0.5)
        with pytest.raises(DatabaseError, match=r"it cannot be written; allow writing.*or copy it.*--db"):
            Store.open(folder / "nas.db", "write")
    assert files(folder) == {"nas.db"}
    with Store.open(folder / "nas.db", "read") as store:
        assert store.is_read_only == (os.geteuid() != 0)


def test_what_a_killed_writer_left_in_its_log_is_read_too(folder: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "nas.db") as store:
        store.add_search(search())
        store.add_trial(trial())
        for name in files(tmp_path):
            shutil.copy(tmp_path / name, folder)
    assert files(folder) == {"nas.db", "nas.db-wal", "nas.db-shm"}
    closed(folder)
    with AsNobody(), Store.open(folder / "nas.db", "read") as store:
        assert len(store.trials()) == 1
    folder.chmod(0o755)
    (folder / "nas.db-shm").unlink()
    folder.chmod(0o555)
    with AsNobody(), pytest.raises(DatabaseError, match=r"its last rows are in nas\.db-wal.*copy both"):
        Store.open(folder / "nas.db", "read")


def test_an_older_database_that_may_not_be_written_says_what_to_do(folder: Path) -> None:
    Store.open(folder / "nas.db").close()
    for revision, kind, said in (
        ("0001", DatabaseError, "at revision 0001, older than .* cannot be upgraded.*copy it"),
        ("9999", DatabaseTooNewError, "at revision 9999, written by a newer puzzle-nas.*upgrade the package"),
    ):
        folder.chmod(0o755)
        (folder / "nas.db").chmod(0o644)
        with sqlite3.connect(folder / "nas.db") as connection:
            connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'")
        connection.close()
        closed(folder)
        with AsNobody(), pytest.raises(kind, match=said):
            Store.open(folder / "nas.db", "read")


def test_a_database_that_may_not_be_read_says_so(folder: Path) -> None:
    Store.open(folder / "nas.db").close()
    (folder / "nas.db").chmod(0o000)
    with AsNobody(), pytest.raises(DatabaseError, match=r"nas\.db: this user may not read it"):
        Store.open(folder / "nas.db", "read")
    folder.chmod(0o000)
    with AsNobody(), pytest.raises(DatabaseError, match=r"nas\.db: this user may not read it"):
        Store.open(folder / "nas.db", "read")


# The disk itself is read-only: in a mount namespace of the command's own.
MOUNTED = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


def on_a_read_only_disk(home: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    return subprocess.run(
        ["unshare", *own, "--mount", "sh", "-c", MOUNTED, str(home), *command],
        env=environment(home), capture_output=True, text=True, cwd=home.parent,
    )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """With a search that was measured, and a trial of it that was built."""
    home = tmp_path / "home"
    home.mkdir()
    if shutil.which("unshare") is None or on_a_read_only_disk(home, "true").returncode != 0:
        pytest.skip("there are no mount namespaces here")
    assert on_a_read_only_disk(home, "touch", str(home / "x")).returncode != 0
    with Store.open(home / "nas.db") as store:
        known = add_search(store, tmp_path, name="s")
        add_measured(store, known)
        add_trial(store, known, "latency=60%", 1.0)
    return home


def test_reading_commands_answer_from_a_read_only_home(home: Path) -> None:
    def nas(*arguments: str) -> str:
        done = on_a_read_only_disk(home, sys.executable, "-m", "nas.cli.main", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (trial,) = json.loads(nas("trials", "s", "--json"))
    shown = json.loads(nas("show", "1", "--json"))
    assert {name: shown[name] for name in trial} == trial
    assert len(json.loads(nas("pareto", "s", "--points", "3", "--json"))) == 3
    nas("report", "s", "--out", str(home.parent / "report.html"))
    assert (home.parent / "report.html").is_file()
    known = json.loads(nas("solve", "s", "--budget", "latency=60%", "--json"))
    assert (known["id"], known["kl"]) == (1, trial["kl"])
    new = json.loads(nas("solve", "s", "--budget", "latency=45%", "--json"))
    assert (new["id"], new["status"], new["budget"]) == (None, "optimal", {"latency": "45%"})
    assert new["details"]["explained"]["prices"]
    assert "It is not kept as a trial" in nas("solve", "s", "--budget", "latency=45%")
    found = json.loads(nas("pool", "s", "--count", "3", "--json"))["found"]
    assert [one["trial"]["id"] for one in found] == [1, None, None]
    assert "They are not kept as trials" in nas("pool", "s", "--count", "3")
    for arguments in (["trials", "s", "--delete", "--yes"], ["solve", "s", "--budget", "latency=45%", "--refine", "2"]):
        done = on_a_read_only_disk(home, sys.executable, "-m", "nas.cli.main", *arguments)
        assert done.returncode == 1
        assert "nas.db: it cannot be written; allow writing to the file and its folder" in the_error(done.stderr)
    assert files(home) == {"nas.db"}
