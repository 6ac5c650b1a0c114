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
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from rows import cost, score, search, trial
from sqlalchemy import create_engine, inspect, text

import db.migrate
from db.connect import Access
from db.errors import DatabaseError, DatabaseTooNewError
from db.migrate import HEAD, VERSION_TABLE
from db.models import Base, FailureRow, OptionRow
from db.patience import Patience
from db.store import Store

pytest_plugins = ["databases"]


def test_migrations_build_exactly_the_models(url: str) -> None:
    Store.open(url).close()
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        assert {*inspect(connection).get_table_names()} == {*Base.metadata.tables, VERSION_TABLE}
    engine.dispose()


def test_head_is_the_newest_revision() -> None:
    assert ScriptDirectory(str(Path(db.migrate.__file__).with_name("migrations"))).get_heads() == [HEAD]


def test_what_was_kept_is_there_after_reopening(url: str) -> None:
    with Store.open(url) as store:
        store.add_scores([score()])
    with Store.open(url) as store:
        assert store.scores(["s1"]).keys() == {"s1"}


_LATER = {
    "0012": {"cost": (), "trial": ("round_tokens",)},
    "0011": {"cost": (), "trial": [p + name for name in ("file_bytes", "bits_per_weight") for p in ("predicted_", "")]},
    "0003": {
        "cost": ("prefill_error_s", "decode_error_s", "contention"),
        "trial": (
            "predicted_latency_error_s", "predicted_ttft_error_s", "predicted_decode_error_s", "predicted_contention",
            "ttft_spread", "decode_spread", "contention",
        ),
    },
    "0004": {
        "cost": ("prefill_j", "decode_j", "prefill_error_j", "decode_error_j"),
        "trial": ("predicted_energy_j", "predicted_energy_error_j", "energy_j", "energy_ratio", "energy_spread"),
    },
}  # fmt: skip
"""Columns by the revision that added them."""


def make_old(url: str, revision: str) -> None:
    """Turn a database of today into what it was before later revisions added columns."""
    engine = create_engine(url)
    with engine.begin() as connection:
        added = [tables for later, tables in _LATER.items() if later > revision]
        for table, columns in (pair for tables in added for pair in tables.items()):
            for column in columns:
                connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        for later, table in (("0009", "task_group"), ("0008", "whole_time"), ("0007", "evaluation")):
            if revision < later:
                connection.execute(text(f"DROP TABLE {table}"))
        if revision < "0006":
            connection.execute(text("ALTER TABLE option ADD COLUMN cost_key TEXT"))
            connection.execute(text("ALTER TABLE option DROP COLUMN cost_keys"))
        if revision < "0005":
            connection.execute(text("ALTER TABLE stage ADD COLUMN detail JSON NOT NULL DEFAULT '{}'"))
        if revision < "0002":
            connection.execute(text("ALTER TABLE search DROP COLUMN score_text"))
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'"))
    engine.dispose()


def test_of_times_taken_before_it_was_noted_nobody_knows_how_good_they_are(url: str) -> None:
    parts = {"fixed": {"prefill_s": 1.0}, "whole": {"prefill_s": 2.0}}
    with Store.open(url) as store:
        store.add_search(search(parent_costs=parts))
        store.add_costs([cost(spread=0.02, contention=0.5), cost("c2", name="skip", prefill_s=0.0)])
        store.add_trial(trial(latency_s=1.0, latency_spread=0.1, contention=0.5))
    make_old(url, "0002")
    with Store.open(url) as store:
        (old,), (tried,), (asked,) = store.costs(["c1"]).values(), store.trials(), store.searches()
        nothing = store.costs(["c2"])["c2"]
        assert [getattr(nothing, name) for tables in _LATER.values() for name in tables["cost"]] == 7 * [0.0]
        assert (old.spread, old.prefill_error_s, old.contention) == (0.02, None, None)
        assert (tried.latency_spread, tried.contention, tried.predicted_latency_error_s) == (0.1, None, None)
        unknown = dict.fromkeys(name for tables in _LATER.values() for name in tables["cost"])
        assert asked.parent_costs == {part: kept | unknown for part, kept in parts.items()}


def test_joules_of_a_search_of_before_are_unknown_but_for_what_runs_nothing(url: str) -> None:
    with Store.open(url) as store:
        store.add_search(search(parent_costs={"whole": {"prefill_s": 2.0, "contention": 0.0}}))
        store.add_costs([cost(prefill_j=1.0), cost("c2", name="skip", prefill_s=0.0)])
        store.add_trial(trial(latency_s=1.0, energy_j=3.0))
    make_old(url, "0003")
    with Store.open(url) as store:
        rows, (tried,), (asked,) = store.costs(["c1", "c2"]), store.trials(), store.searches()
        assert (rows["c1"].prefill_s, rows["c1"].prefill_j, rows["c1"].decode_error_j) == (1e-3, None, None)
        assert (rows["c2"].prefill_j, rows["c2"].decode_j, rows["c2"].prefill_error_j) == (0, 0, 0)
        assert (tried.latency_s, tried.energy_j, tried.predicted_energy_j) == (1.0, None, None)
        unknown = dict.fromkeys(_LATER["0004"]["cost"])
        assert asked.parent_costs == {"whole": {"prefill_s": 2.0, "contention": 0.0} | unknown}


def test_a_database_of_the_first_revision_keeps_what_it_has(url: str) -> None:
    with Store.open(url) as store:
        store.add_search(search(score_text="t"))
    make_old(url, "0001")
    with Store.open(url) as store:
        (found,) = store.searches()
        assert (found.name, found.score_text) == (search().name, None)
        assert store.add_search(search(score_text="t")).score_text == "t"


def test_sums_of_costs_become_the_costs_that_they_were_of(url: str) -> None:
    """But for a sum that has a part which no option of its search is."""
    costs = {"k": "attention kv2", "f": "ffn ffn64", "kf": "attention kv2 + ffn ffn64", "none": "skip", "ff": "a + b"}
    keys = {"L0.attention=kv2": "k", "L0.ffn=ffn64": "f", "L0.block=kv2+ffn64": "kf", "L0.block=skip+skip": "none",
            "L1.block=a+b": "ff", "L1.ffn=skip": None}  # fmt: skip
    with Store.open(url) as store:
        store.add_search(search())
        store.add_costs([cost(key, name=name) for key, name in costs.items()])
        store.set_options("5ea5c4", [OptionRow(search_id="5ea5c4", choice=choice, first_slot=0, span=1, name="")
                                     for choice in keys])  # fmt: skip
    make_old(url, "0005")
    engine = create_engine(url)
    with engine.begin() as connection:
        for choice, key in keys.items():
            connection.execute(
                text("UPDATE option SET cost_key = :key WHERE choice = :choice"), {"key": key, "choice": choice}
            )
    engine.dispose()
    with Store.open(url) as store:
        found = {one.option.choice: one.option.cost_keys for one in store.options("5ea5c4")}
        assert found == {
            "L0.attention=kv2": ["k"], "L0.ffn=ffn64": ["f"], "L0.block=kv2+ffn64": ["k", "f"],
            "L0.block=skip+skip": [], "L1.block=a+b": ["ff"], "L1.ffn=skip": [""],
        }  # fmt: skip
        assert store.costs(list(costs)).keys() == {"k", "f", "ff"}


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
