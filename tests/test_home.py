"""The home that belongs to the database in use: of a copied, moved or stored one, and what may be deleted there."""

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from searches import Here, rows
from stored import add_measured, add_search, add_trial

from db.store import Store
from nas.files.forget import Deleted, delete_trials
from nas.files.home import child_file, home_of, is_ours

pytest_plugins = ["databases"]


def a_search(home: Path, url: str | Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A search of one built trial, its home as given; returns its child's file."""
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("NAS_HOME", str(home))
    with Store.open(url) as store:
        search = add_search(store, home, name="s")
        add_measured(store, search)
        trial = add_trial(store, search, "latency=90%", 1.0)
    file = child_file(home, trial.child_key)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"weights")
    return file


def home_in(url: str | Path) -> Path:
    with Store.open(url, "read") as store:
        return home_of(store, store.find_search("s"))


def delete_all(url: str | Path) -> Deleted:
    with Store.open(url, "write") as store:
        return delete_trials(store, store.trials(), {search.id: search for search in store.searches()})


def test_a_copied_home_forgets_its_own_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = a_search(tmp_path / "home", tmp_path / "home/nas.db", monkeypatch)
    copied = shutil.copytree(tmp_path / "home", tmp_path / "copied")
    assert home_in(copied / "nas.db") == copied
    own = child_file(copied, file.stem)
    assert delete_all(copied / "nas.db").files == (own,)
    assert (own.exists(), file.exists()) == (False, True)
    assert home_in(tmp_path / "home/nas.db") == tmp_path / "home"


def test_a_moved_home_is_where_its_database_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = a_search(tmp_path / "home", tmp_path / "home/nas.db", monkeypatch)
    os.rename(tmp_path / "home", tmp_path / "moved")
    assert home_in(tmp_path / "moved/nas.db") == tmp_path / "moved"
    assert delete_all(tmp_path / "moved/nas.db").files == (child_file(tmp_path / "moved", file.stem),)


@pytest.mark.parametrize("place", ["apart/nas.db", "apart/copy.db", "home/backup.db"])
def test_a_copy_of_the_database_alone_reads_the_home_and_deletes_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    file = a_search(tmp_path / "home", tmp_path / "home/nas.db", monkeypatch)
    (tmp_path / "apart").mkdir()
    with sqlite3.connect(tmp_path / "home/nas.db") as source, sqlite3.connect(tmp_path / place) as copy:
        source.backup(copy)
    assert home_in(tmp_path / place) == tmp_path / "home"
    deleted = delete_all(tmp_path / place)
    assert deleted.files == ()
    assert deleted.notes == (
        f"{file} stays: {tmp_path}/home may be another database's; remove it where it is not",
    )  # fmt: skip
    assert file.exists()


def test_two_databases_in_a_home_leave_each_others_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither has the name that a home's own has."""
    file = a_search(tmp_path / "home", tmp_path / "home/a.db", monkeypatch)
    with sqlite3.connect(tmp_path / "home/a.db") as source, sqlite3.connect(tmp_path / "home/b.db") as copy:
        source.backup(copy)
    assert delete_all(tmp_path / "home/b.db").files == ()
    assert file.exists()
    (tmp_path / "home/b.db").unlink()
    assert delete_all(tmp_path / "home/a.db").files == (file,)


def test_a_home_apart_from_its_database_stays_the_stored_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the database lies in a home of the same parent's."""
    other = a_search(tmp_path / "other", tmp_path / "other/nas.db", monkeypatch)
    with Store.open(tmp_path / "other/nas.db") as store:
        store.delete_trials([trial.id for trial in store.trials()])
    other.rename(other.with_name("elses.safetensors"))
    file = a_search(tmp_path / "home", tmp_path / "other/nas.db", monkeypatch)
    assert home_in(tmp_path / "other/nas.db") == tmp_path / "home"
    (note,) = delete_all(tmp_path / "other/nas.db").notes
    assert note.startswith(f"{file} stays: {tmp_path}/home may be another database's")
    assert file.exists()


def test_a_home_that_is_a_link_is_that_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    file = a_search(tmp_path / "home", tmp_path / "home/nas.db", monkeypatch)
    assert delete_all(tmp_path / "disk/nas.db").files == (file,)


def test_a_server_keeps_the_stored_path(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its home holds no SQLite database; one that does is that one's."""
    if url.startswith("sqlite"):
        pytest.skip("a server's")
    file = a_search(tmp_path / "home", url, monkeypatch)
    assert home_in(url) == tmp_path / "home"
    Store.open(tmp_path / "taken/nas.db").close()
    with Store.open(url) as store:
        assert not is_ours(store, tmp_path / "taken")
    assert delete_all(url).files == (file,)


def moved(copy: Path) -> Path:
    """The home of a finished search, which was run elsewhere in a home that is gone."""
    home = copy / "home"
    with sqlite3.connect(home / "nas.db") as connection:
        ((request,),) = connection.execute("SELECT request FROM search")
        gone = json.dumps(json.loads(request) | {"home": str(copy / "gone")})
        connection.execute("UPDATE search SET request = ?", [gone])
    connection.close()
    return home


def test_a_moved_home_exports_what_it_built(here: Here, copy: Path, tmp_path: Path) -> None:
    home = moved(copy)
    (trial,) = rows(home, "trial")
    done = here(home, "export", str(trial["id"]), "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/model.safetensors").is_file()


@pytest.mark.usefixtures("ray_here")
def test_a_moved_home_builds_from_its_own_library_what_is_gone(here: Here, copy: Path) -> None:
    home = moved(copy)
    (trial,) = rows(home, "trial")
    file = child_file(home, trial["child_key"])
    file.unlink()
    done = here(home, "build", str(trial["id"]), "--no-time")
    assert done.returncode == 0, done.stderr
    assert file.is_file()
    (again,) = rows(home, "trial")
    assert again["kl"] == trial["kl"], "the same child"
    assert not (copy / "gone").exists()
