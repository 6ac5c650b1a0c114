"""What the store promises, on every database it runs on; and SQLite's own troubles, made to happen."""

import math
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
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Double, create_engine, exc, inspect, text

import db.migrate
from db.connect import DatabaseError
from db.migrate import HEAD, VERSION_TABLE, DatabaseTooNew
from db.models import Base, Cost, Distillation, Failure, Option, Score, Search, Stage, Trial, now
from db.rows import BadRow
from db.store import Store

pytest_plugins = ["databases"]


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


def search(id: str = "5ea5c4", **columns: Any) -> Search:
    given = dict(name="llama-60", parent="/models/llama", parent_digest="d1", parent_architecture="kv8+ffn512")
    return Search(id=id, **given | dict(request={"budget": "60%"}, scenario={"batch": 8}, hardware="H100") | columns)


def score(key: str = "s1", **columns: Any) -> Score:
    given = dict(choice="L3.ffn=ffn256", kl=0.25, lm_loss=2.5, top1_agreement=0.75, hidden_cosine=0.9)
    return Score(key=key, **given | columns)


def cost(key: str = "c1", **columns: Any) -> Cost:
    given = dict(name="ffn ffn256", prefill_s=1e-3, decode_s=1e-4, spread=0.02, parameters=7 * 10**10)
    return Cost(key=key, **given | dict(weight_bytes=14 * 10**10, kv_bytes_per_token=0) | columns)


def distillation(key: str = "b1", **columns: Any) -> Distillation:
    given = dict(choice="L3.ffn=ffn256", tokens=10**9, seconds=60.0, loss_first_weights=0.5, curve=[[0.0, 0.5]])
    return Distillation(key=key, **given | columns)


def trial(key: str = "t1", **columns: Any) -> Trial:
    given = dict(search_id="5ea5c4", solver="mip", architecture="kv8+ffn256", budget={"latency": 0.6}, score=0.1)
    given |= dict(status="optimal", predicted_latency_s=1.0, predicted_ttft_s=0.1, predicted_decode_s=0.01)
    given |= dict(predicted_throughput=900.0, predicted_memory_bytes=24 * 2**30, predicted_parameters=10**9)
    return Trial(key=key, **given | columns)


def stage(**columns: Any) -> Stage:
    return Stage(**dict(search_id="5ea5c4", name="score", started_at=now(), seconds=1.5, work_done=12) | columns)


# Measured things


def test_a_measured_thing_comes_back_as_it_went_in(store: Store) -> None:
    rows = score(), cost(), distillation(loss_trained=0.1)
    store.add_scores([rows[0]])
    store.add_costs([rows[1]])
    store.add_distillations([rows[2]])
    assert store.scores({"s1", "unknown"}) == {"s1": rows[0]}
    assert store.costs(["c1"]) == {"c1": rows[1]}
    assert store.distillations(["b1", "b2"]) == {"b1": rows[2]}
    assert store.scores([]) == {}


def test_the_first_writer_of_a_key_wins(store: Store) -> None:
    store.add_scores([score(kl=0.25)])
    store.add_scores([score(kl=0.5), score("s2", kl=0.75), score("s2", kl=1.0)])
    store.add_scores([])
    assert {key: row.kl for key, row in store.scores(["s1", "s2"]).items()} == {"s1": 0.25, "s2": 0.75}


def test_thousands_of_keys_at_once(store: Store) -> None:
    keys = [f"s{i}" for i in range(3000)]
    store.add_scores([score(key) for key in keys])
    assert store.scores(keys).keys() == set(keys)


def test_moments_are_utc_whatever_zone_they_were_told_in(store: Store) -> None:
    moment = datetime(2026, 11, 1, 12, tzinfo=timezone(timedelta(hours=9)))
    store.add_scores([score(created_at=moment)])
    kept = store.scores(["s1"])["s1"].created_at
    assert kept == moment
    assert kept.tzinfo is UTC or kept.utcoffset() == timedelta(0)


# Searches


def test_adding_a_search_again_replaces_it_but_keeps_when_it_began(store: Store) -> None:
    first = store.add_search(search())
    again = store.add_search(search(name="renamed", status="finished", parent_costs={"latency_s": 2.0}))
    assert store.searches() == [again]
    assert (again.name, again.status, again.parent_costs) == ("renamed", "finished", {"latency_s": 2.0})
    assert again.created_at == first.created_at < again.updated_at


def test_a_search_has_one_of_four_statuses(store: Store) -> None:
    before = store.add_search(search())
    store.set_search_status(before.id, "interrupted")
    after = store.find_search(before.id)
    assert (before.status, after.status) == ("running", "interrupted")
    assert after.updated_at > before.updated_at
    with pytest.raises(exc.IntegrityError):
        store.set_search_status(before.id, "lost")
    with pytest.raises(ValueError, match="no search has the id 'nope'"):
        store.set_search_status("nope", "failed")


def test_a_search_is_found_by_id_by_name_and_by_the_beginning_of_its_id(store: Store) -> None:
    old, new = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    store.add_search(search("aa11", name="llama", created_at=new))
    store.add_search(search("aa22", name="llama", created_at=old))
    store.add_search(search("bb33", name="aa", created_at=old))
    assert store.find_search("aa22").id == "aa22"
    assert store.find_search("llama").id == "aa11"
    assert store.find_search("b").id == "bb33"
    assert store.find_search("aa").id == "bb33", "a whole name beats the beginning of an id"
    with pytest.raises(ValueError, match="'a' begins several ids: aa11, aa22"):
        store.find_search("a")
    with pytest.raises(ValueError, match="no search 'lama'; there is llama"):
        store.find_search("lama")
    with pytest.raises(ValueError, match="no search ''"):
        store.find_search("")


def test_nothing_is_found_in_an_empty_store(store: Store) -> None:
    with pytest.raises(ValueError, match="there is none yet"):
        store.find_search("x")
    assert (store.searches(), store.trials(), store.stages("x"), store.failures("x"), store.options("x")) == ([],) * 5


# Options


def test_options_come_with_what_is_known_of_them_in_slot_order(store: Store) -> None:
    store.add_search(search())
    store.add_scores([score()])
    store.add_costs([cost()])
    store.add_distillations([distillation()])
    whole = Option(search_id="5ea5c4", choice="L3.ffn=ffn256", first_slot=7, span=1, name="ffn ffn256")
    whole.score_key, whole.cost_key, whole.distillation_key = "s1", "c1", "b1"
    bare = Option(search_id="5ea5c4", choice="L0.ffn=skip", first_slot=1, span=1, name="ffn skip", cost_key="by hand")
    store.set_options("5ea5c4", [whole, bare])
    first, second = store.options("5ea5c4")
    assert (first.option, first.score, first.cost, first.distillation) == (bare, None, None, None)
    assert (second.option, second.score) == (whole, store.scores(["s1"])["s1"])
    assert second.cost is not None
    assert second.distillation is not None
    assert (second.cost.parameters, second.distillation.curve) == (7 * 10**10, [[0.0, 0.5]])

    store.set_options("5ea5c4", [bare])
    assert [known.option for known in store.options("5ea5c4")] == [bare]
    store.set_options("5ea5c4", [])
    assert store.options("5ea5c4") == []


def test_an_option_cannot_point_at_a_score_that_is_not_there(store: Store) -> None:
    store.add_search(search())
    kept = Option(search_id="5ea5c4", choice="L0.ffn=skip", first_slot=1, span=1, name="ffn skip")
    store.set_options("5ea5c4", [kept])
    lost = Option(search_id="5ea5c4", choice="L1.ffn=skip", first_slot=3, span=1, name="ffn skip", score_key="s9")
    with pytest.raises(exc.IntegrityError):
        store.set_options("5ea5c4", [lost])
    assert [known.option for known in store.options("5ea5c4")] == [kept], "the old ones stay when the new ones fail"


# Trials, stages, failures


def test_a_trial_is_added_once_and_filled_in_later(store: Store) -> None:
    store.add_search(search())
    added = store.add_trial(trial())
    assert store.add_trial(trial(score=0.9)) == added
    filled = store.update_trial(added.id, kl=0.02, memory_bytes=2**40, details={"fronts": [1, 2]}, child_path="/c")
    assert store.trial(added.id) == filled
    assert (filled.kl, filled.memory_bytes, filled.details, filled.score) == (0.02, 2**40, {"fronts": [1, 2]}, 0.1)
    assert store.update_trial(added.id) == filled
    assert added.kl is None, "what was returned before is cut loose"


def test_a_trial_that_cannot_be_updated_says_why(store: Store) -> None:
    store.add_search(search())
    known = store.add_trial(trial()).id
    with pytest.raises(BadRow, match=rf"trial {known}: there is no column latncy_s; there are id, key,.* latency_s"):
        store.update_trial(known, latncy_s=1.0)
    with pytest.raises(ValueError, match=rf"trial {known}: key never changes"):
        store.update_trial(known, key="other")
    for attempt in (lambda: store.update_trial(99, kl=1.0), lambda: store.trial(99)):
        with pytest.raises(ValueError, match="no trial has the id 99"):
            attempt()
    with pytest.raises(exc.IntegrityError):
        store.add_trial(trial("t2", search_id="unknown"))


def test_trials_are_filtered_sorted_and_limited(store: Store) -> None:
    store.add_search(search())
    store.add_search(search("other"))
    for key, kl in (("a", 0.3), ("b", None), ("c", 0.1), ("d", 0.2)):
        store.add_trial(trial(key, kl=kl, search_id="other" if key == "d" else "5ea5c4"))

    def keys(**asked: Any) -> str:
        return "".join(found.key for found in store.trials(**asked))

    assert keys() == "abcd"
    assert keys(descending=True) == "dcba"
    assert keys(sort="kl") == "cdab", "empty ones last"
    assert keys(sort="kl", descending=True) == "adcb", "empty ones last"
    assert keys(sort="solver", limit=2) == "ab", "in the order they were added where equal"
    assert keys(search_id="5ea5c4", where="kl > 0.1") == "a"
    with pytest.raises(ValueError, match="did you mean kl"):
        store.trials(sort="k1")


def test_stages_and_failures_are_kept_in_order(store: Store) -> None:
    store.add_search(search())
    stages = [store.add_stage(stage(name=name, detail={"n": 1})) for name in ("space", "score")]
    assert store.stages("5ea5c4") == stages
    failures = [
        store.add_failure(Failure(search_id="5ea5c4", stage="score", place=place, reason="NaN"))
        for place in ("L3.ffn=ffn256", "L4.ffn=ffn256")
    ]
    store.add_failure(Failure(stage="start", place="worker 2", reason="gone"))
    assert store.failures("5ea5c4") == failures
    assert failures[0].id != failures[1].id


# What may not be written

ROWS = [search(), score(), cost(), distillation(), trial(), stage()]
FLOATS = [
    pytest.param(row, column.name, id=f"{column.table}.{column.name}")
    for row in ROWS
    for column in type(row).__table__.columns
    if isinstance(column.type, Double)
]


def write(store: Store, row: Base) -> None:
    match row:
        case Search():
            store.add_search(row)
        case Score():
            store.add_scores([row])
        case Cost():
            store.add_costs([row])
        case Distillation():
            store.add_distillations([row])
        case Trial():
            store.add_trial(row)
        case Stage():
            store.add_stage(row)
        case _:
            raise AssertionError(row)


@pytest.fixture(scope="module")
def sqlite_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("db") / "nas.db") as opened:
        opened.add_search(search("5ea5c4"))
        yield opened


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("row", "column"), FLOATS)
def test_no_float_is_written_that_is_not_finite(sqlite_store: Store, row: Base, column: str, value: float) -> None:
    bad = type(row)(
        **{name: getattr(row, name) for name in (column.name for column in type(row).__table__.columns) if name != "id"}
    )
    setattr(bad, column, value)
    place = rf"{type(row).__tablename__} {getattr(row, 'key', 'new')}, column {column}: {value} is not a finite number"
    with pytest.raises(BadRow, match=place):
        write(sqlite_store, bad)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (dict(details={"curve": [1.0, math.nan]}), r"column details.curve\[1\]: nan is not a finite number"),
        (dict(details={1: 2}), r"column details: the key 1 is a int, not a str"),
        (dict(details={"when": now()}), r"column details.when: .* is a datetime, which JSON does not have"),
        (dict(memory_bytes=np.int64(3)), "column memory_bytes: .* is a int64, not a int"),
        (dict(memory_bytes=3.0), "column memory_bytes: 3.0 is a float, not a int"),
        (dict(kl="0.1"), "column kl: '0.1' is a str, not a float"),
        (dict(kl=True), "column kl: True is a bool, not a float"),
        (dict(solver=None), "column solver: it is empty; every row needs it"),
        (dict(created_at=datetime(2026, 1, 1)), "column created_at: .* says no time zone"),
    ],
)
def test_no_value_is_written_that_would_come_back_as_another(
    sqlite_store: Store, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRow, match=f"trial t1, {message}"):
        sqlite_store.add_trial(trial(**columns))
    assert sqlite_store.trials() == []


def test_numpy_floats_are_floats(sqlite_store: Store) -> None:
    sqlite_store.add_scores([score("numpy", kl=np.float64(0.5), lm_loss=1)])
    kept = sqlite_store.scores(["numpy"])["numpy"]
    assert (kept.kl, kept.lm_loss) == (0.5, 1.0)
    assert (type(kept.kl), type(kept.lm_loss)) == (float, float)


def test_one_bad_row_keeps_the_whole_batch_out(store: Store) -> None:
    with pytest.raises(BadRow, match="score s2, column kl"):
        store.add_scores([score("s1"), score("s2", kl=math.nan)])
    assert store.scores(["s1", "s2"]) == {}


# Opening


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
    with pytest.raises(DatabaseTooNew, match=r"at revision 9999.*upgrade the package"):
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
        ("mysql://user@host/nas", "mysql:// is no database for our rows; use sqlite:// or postgresql://"),
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
    with pytest.raises(DatabaseError, match="its folder cannot be made"):
        Store.open(tmp_path / "file" / "nas.db")
    with pytest.raises(DatabaseError, match="it cannot be opened"):
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
    with Store.open(tmp_path / "nas.db") as store:
        with store._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout = 20")
        other = sqlite3.connect(tmp_path / "nas.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseError, match="another process kept it locked"):
            store.add_scores([score()])
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
                store.add_failure(Failure(stage="a", place="b", reason="c"))
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
from db.models import Score
from db.store import Store
url, name, batches = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
with Store.open(url) as store:
    for batch in range(int(batches)):
        numbers = dict(kl=1, lm_loss=1, top1_agreement=1, hidden_cosine=1)
        store.add_scores([Score(key=f"{name}.{batch}.{i}", choice="L0.ffn=skip", **numbers) for i in range(50)])
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
    assert not loaded & {"torch", "transformers", "numpy", "ray", "alembic", "pydantic", "blocklib", "nas"}
