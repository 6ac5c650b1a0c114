"""Opening a database: where it is, its schema, its troubles made to happen, and several processes at once."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rows import score, search
from sqlalchemy import create_engine, text

from db.connect import Access
from db.errors import DatabaseError, DatabaseTooNewError
from db.migrate import VERSION_TABLE
from db.models import FailureRow
from db.patience import Patience
from db.store import Store

pytest_plugins = ["databases"]


def test_what_was_kept_is_there_after_reopening(url: str) -> None:
    with Store.open(url) as store:
        store.add_scores([score()])
    with Store.open(url) as store:
        assert store.scores(["s1"]).keys() == {"s1"}


def test_a_database_shared_with_another_user_of_alembic(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('v3.2.0.a')"))
    with Store.open(url) as store:
        store.add_search(search())
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "v3.2.0.a"
    engine.dispose()


def test_a_database_from_the_future_is_left_alone(url: str) -> None:
    with Store.open(url) as store:
        store.add_search(search())
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(DatabaseTooNewError, match=r"at revision 9999.*upgrade the package"):
        Store.open(url)


def test_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NAS_DB", "NAS_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    Store.open().close()
    assert (tmp_path / "user/.puzzle-nas/nas.db").is_file()
    monkeypatch.setenv("NAS_HOME", str(tmp_path / "home"))
    Store.open().close()
    assert (tmp_path / "home/nas.db").is_file()
    monkeypatch.setenv("NAS_DB", f"sqlite:///{tmp_path}/by/url.db")
    Store.open().close()
    assert (tmp_path / "by/url.db").is_file()
    Store.open(tmp_path / "by path?%#.db").close()
    assert (tmp_path / "by path?%#.db").is_file()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://user@host/nas", "mysql:// is not supported; use sqlite:// or postgresql://"),
        ("sqlite://", "does not name a file"),
        ("sqlite:///:memory:", "does not name a file"),
        ("://user:secret@host", "the database's URL cannot be read"),
        ("postgresql://user:secret@host:port/nas", "the database's URL cannot be read"),
    ],
)
def test_a_url_that_means_no_database(url: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=message) as error:
        Store.open(url)
    assert "secret" not in str(error.value)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(DatabaseError, match="the server cannot be reached; is it running") as error:
        Store.open(f"postgresql://user:secret@/nas?host={tmp_path}")
    assert "secret" not in str(error.value)


# SQLite's troubles


def test_a_file_that_is_not_a_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database\n" * 100)
    with pytest.raises(DatabaseError, match=r"notes\.txt: it is not an SQLite database"):
        Store.open(path)
    assert path.read_text().startswith("not a database")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseError, match=r"file is a file, not a folder; name another"):
        Store.open(tmp_path / "file" / "nas.db")
    with pytest.raises(DatabaseError, match="is a folder, not a database"):
        Store.open(tmp_path)


def test_a_full_disk_keeps_nothing_of_a_write_and_spoils_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path / "nas.db") as store:
        store.add_scores([score()])
        with store._engine.connect() as connection:  # the one connection of the pool; as many pages as it has, and 2
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(DatabaseError, match=r"nas\.db: the disk is full; free some space"):
            store.add_scores([score(f"full{i}") for i in range(2000)])
        assert [key for key in store.scores([f"full{i}" for i in range(2000)])] == []
        assert store.scores(["s1"]).keys() == {"s1"}


def test_a_database_that_another_process_keeps_locked(tmp_path: Path) -> None:
    said: list[str] = []
    with Store.open(tmp_path / "nas.db", patience=Patience(1.5, said.append)) as store:
        other = sqlite3.connect(tmp_path / "nas.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseError, match="another process kept it locked"):
            store.add_scores([score()])
        assert said == [f"{tmp_path}/nas.db is locked by another process; waiting, for 2 s at most"]
        assert store.scores(["s1"]) == {}, "reading does not wait"
        other.execute("ROLLBACK")
        store.add_scores([score()])
        other.close()


def python(code: str, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_a_database_that_another_process_is_just_creating(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "nas.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # for which a change to a write-ahead log does not wait by itself
    done = threading.Timer(0.2, other.commit)
    done.start()
    with Store.open(tmp_path / "nas.db") as store:
        assert store.searches() == []
    done.join()
    other.close()


@contextmanager
def not_root() -> Iterator[None]:
    """Root may write everywhere, so it becomes somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_and_a_folder_that_may_not_be_written() -> None:
    folder = Path(tempfile.mkdtemp())  # not `tmp_path`, whose parents are closed to others
    Store.open(folder / "nas.db").close()
    (folder / "nas.db").chmod(0o444)
    folder.chmod(0o555)
    try:
        with not_root():
            advice = r"nas\.db: it cannot be .*; allow writing to the file and its folder"
            with pytest.raises(DatabaseError, match=advice), Store.open(folder / "nas.db") as store:
                store.add_failure(FailureRow(stage="a", place="b", reason="c"))
            with pytest.raises(DatabaseError, match=r"new\.db: it cannot be opened; allow writing"):
                Store.open(folder / "new.db")
            with pytest.raises(DatabaseError, match=r"deep/nas\.db: its folder cannot be made \(Permission denied"):
                Store.open(folder / "deep" / "nas.db")
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


# Several processes

WRITER = """
import sys
from db.models import ScoreRow
from db.store import Store
url, name, batches = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
with Store.open(url) as store:
    for batch in range(int(batches)):
        numbers = dict(kl=1, lm_loss=1, top1_agreement=1, hidden_cosine=1)
        store.add_scores([ScoreRow(key=f"{name}.{batch}.{i}", choice="L0.ffn=skip", **numbers) for i in range(50)])
        print(batch, flush=True)
"""


def writer(url: str, name: str, batches: int) -> "subprocess.Popen[str]":
    process = python(WRITER, url, name, str(batches), stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def written(url: str, name: str, batches: int) -> list[int]:
    """How many of its 50 rows each batch left."""
    with Store.open(url) as store:
        kept = store.scores([f"{name}.{batch}.{i}" for batch in range(batches) for i in range(50)])
    count = Counter(int(key.split(".")[1]) for key in kept)
    return [count[batch] for batch in range(batches)]


def test_processes_that_open_and_write_at_once_lose_nothing(url: str) -> None:
    processes = [writer(url, name, 10) for name in "abc"]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert [written(url, name, 10) for name in "abc"] == [[50] * 10] * 3


def test_a_process_killed_while_writing_leaves_whole_batches(url: str) -> None:
    process = writer(url, "k", 100_000)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    confirmed = [int(process.stdout.readline()) for _ in range(20)][-1]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    left = written(url, "k", confirmed + 200)
    assert left[: confirmed + 1] == [50] * (confirmed + 1), "what was confirmed is kept"
    assert set(left) == {0, 50}, "and nothing is kept by half"


def test_an_up_to_date_database_opens_without_the_heavy_libraries(tmp_path: Path) -> None:
    Store.open(tmp_path / "nas.db").close()
    code = "import sys, db.store; db.store.Store.open(sys.argv[1]).trials(); print(*sys.modules)"
    output, errors = python(code, str(tmp_path / "nas.db")).communicate(timeout=60)
    loaded = {name.partition(".")[0] for name in output.split()}
    assert "sqlalchemy" in loaded, errors
    assert not loaded & {"torch", "transformers", "numpy", "ray", "alembic", "pydantic", "blocklib"}
    assert {name for name in output.split() if name.startswith("nas.")} == {"nas.errors"}


# Files that are not our databases


@pytest.mark.parametrize("access", ["create", "write", "read"])
def test_what_lies_in_the_way_of_a_database_is_named(tmp_path: Path, access: Access) -> None:
    (tmp_path / "one.db").symlink_to(tmp_path / "two.db")
    (tmp_path / "two.db").symlink_to(tmp_path / "one.db")
    with pytest.raises(DatabaseError, match=r"one\.db: its symbolic links lead in a circle"):
        Store.open(tmp_path / "one.db", access)
    (tmp_path / "home").touch()
    with pytest.raises(DatabaseError, match="home is a file, not a folder"):
        Store.open(tmp_path / "home/nas.db", access)
