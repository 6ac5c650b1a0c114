"""Where a search's files are: the home that belongs to the database in use.

A search's row holds the absolute path of its home, which a copied or a moved home takes along and which then names
another home. This file alone says which one is meant, and whose it is. Rows and files only: no torch.
"""

from pathlib import Path

from db import models
from db.connect import DATABASE_SUFFIXES, HOME_DATABASE, sqlite_file
from db.store import Store
from nas.job.stored import request_of


def child_file(home: Path, child_key: str) -> Path:
    return home / "children" / f"{child_key}.safetensors"


def losses_folder(home: Path, child_key: str) -> Path:
    """The place of TensorBoard's files, where a job asks for them."""
    return home / "losses" / child_key


def home_of(store: Store, search: models.SearchRow) -> Path:
    """The folder of the SQLite file in use, if it holds files of the search, and at least as many as the stored path;
    else the stored path: a job may name a `home` elsewhere, and a PostgreSQL database has no folder.

    Files are named by what they hold, so either of two copies is the same.
    """
    stored, file = request_of(search).home, sqlite_file(store.url)
    if file is None or _is_same(file.parent, stored):
        return stored
    here = _held(store, search, file.parent)
    return file.parent if here and here >= _held(store, search, stored) else stored


def is_ours(store: Store, home: Path) -> bool:
    """Whether a home belongs to the database in use, so that its files may be deleted: the database is the home's
    `nas.db`, or the only database in it, or on a server while the home holds no `nas.db`. A copy of an SQLite file that
    lies elsewhere cannot be told from the one that it was copied from."""
    own, file = home / HOME_DATABASE, sqlite_file(store.url)
    if own.exists():
        return file is not None and _is_same(own, file)
    if file is None:
        return True
    near = [each for each in home.iterdir() if each.suffix in DATABASE_SUFFIXES]
    return _is_same(home, file.parent) and all(_is_same(each, file) for each in near)


def _held(store: Store, search: models.SearchRow, home: Path) -> int:
    """How many files of the search lie in this home: children and subblocks, by the keys in their names."""
    children = {trial.child_key for trial in store.trials(search.id, where="kl is not None")}
    subblocks = {known.option.distillation_key for known in store.options(search.id)}
    library = (home / "library" / search.parent_digest).glob("*.safetensors")
    in_library = {file.stem.rpartition("-")[2] for file in library}
    return len(subblocks & in_library) + sum(child_file(home, key).is_file() for key in children)


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
