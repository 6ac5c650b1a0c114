"""The models that a user names: by a trial's number, a search's name (its last built trial), or a path."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from blocklib.gguf_header import is_gguf
from blocklib.hub import folder_of
from db import models
from db.errors import DatabaseError, NotFoundError
from db.store import Store
from nas.errors import MissingFileError, UsageError
from nas.files.database import opened
from nas.job.request import checkpoint_of
from nas.job.stored import scenario_in
from nas.serving.artefact import Artefact, artefact_at
from nas.serving.of_trial import child_of, parent_of

_NOT_HERE = "is no file or folder here, and no trial or search"

Name = str | Path | int


@dataclass(frozen=True)
class Where:
    """The database in which trials are looked up, and where work is talked about."""

    db: str | Path | None
    console: Console


def models_beside_parent(
    children: Sequence[Name], parent: str | Path | None, engine: str | None, where: Where
) -> tuple[Artefact, ...]:
    """The parent that is named, else the first trial's, and then the children; each path once.

    `engine` None: that of a trial's scenario; a path's form decides by itself. Raises UsageError where the engine does
    not run such a path, MissingFileError and NotFoundError where nothing has that name.
    """
    found = [] if parent is None else [_parent(str(parent))]
    for child in children:
        if (path := path_of(child)) is not None:
            found.append(artefact_at(path))
            continue
        with _opened(child, where) as store:
            trial = trial_named(store, child)
            served_by = engine or scenario_in(store.find_search(trial.search_id)).engine
            mine = child_of(store, trial, served_by, where.console)
            if parent is None and not found:
                found.append(parent_of(store, trial, mine, where.console))
            found.append(mine)
    for model in found:
        if engine is not None and model.engine != engine:
            form = "a .gguf file" if model.is_gguf else "a folder"
            raise UsageError(f"{model.path} is {form}, which runs in {model.engine} here, not in {engine}")
    first: dict[Path, Artefact] = {}
    for model in found:
        first.setdefault(model.path.resolve(), model)
    return tuple(first.values())


def model_named(name: Name, engine: str | None, where: Where) -> Artefact:
    """One model; of a trial its GGUF file, or for another engine its folder. Raises as `models_beside_parent` does."""
    if (path := path_of(name)) is not None:
        return artefact_at(path)
    with _opened(name, where) as store:
        return child_of(store, trial_named(store, name), engine or "llama_cpp", where.console)


def path_of(name: Name) -> Path | None:
    """None where it names a trial or a search."""
    if isinstance(name, int) or (isinstance(name, str) and name.isascii() and name.isdigit()):
        return None
    path = Path(name)
    return path if isinstance(name, Path) or path.exists() or is_gguf(name) or os.sep in name else None


def trial_named(store: Store, name: Name) -> models.TrialRow:
    """A trial by its number; or the one of a search that was built last."""
    if isinstance(name, int) or str(name).isdigit():
        return store.trial(int(str(name)))
    try:
        search = store.find_search(str(name))
    except NotFoundError as error:
        raise MissingFileError(f"{name} {_NOT_HERE}: {error}") from error
    built = store.trials(search.id, where="kl is not None")
    if not built:
        raise MissingFileError(f"search {search.name} has no built trial: nas trials {search.name}")
    return built[-1]


@contextmanager
def _opened(name: Name, where: Where) -> Iterator[Store]:
    """The database that may know the name."""
    with ExitStack() as open_ones:
        try:
            store = open_ones.enter_context(opened(where.db, "read", where.console))
        except DatabaseError as error:
            raise MissingFileError(f"{name} {_NOT_HERE}: {error}") from error
        yield store


def _parent(name: str) -> Artefact:
    if is_gguf(name):
        return Artefact("parent", artefact_at(Path(name)).path)
    return Artefact("parent", folder_of(checkpoint_of(name)))
