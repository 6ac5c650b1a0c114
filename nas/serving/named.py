"""The models that a user names: by a trial's number, a search's name (its last built trial), or a path."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
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
from nas.serving.artefact import FOLDER_ENGINES, GGUF_ENGINES, Artefact, artefact_at
from nas.serving.of_trial import child_of, parent_of

_NOT_HERE = "is no file or folder here, and no trial or search"

Name = str | Path | int


@dataclass(frozen=True)
class Where:
    """The database in which trials are looked up, and where work is talked about."""

    db: str | Path | None
    console: Console


def models_beside_parent(
    children: Sequence[Name], parent: str | Path | None, engine: str | None, device: str, where: Where
) -> tuple[Artefact, ...]:
    """The parent that is named, else the first trial's, and then the children; each path once.

    `engine` None: a trial runs in that of its scenario; a path in the one that the trials of its form run in, else in
    its form's usual one. `device` is the one on which they will run. Raises UsageError, with what to type, where the
    engine does not run such a model here, MissingFileError and NotFoundError where nothing has that name.
    """
    found = [] if parent is None else [_parent(str(parent))]
    for child in children:
        if (path := path_of(child)) is not None:
            found.append(artefact_at(path))
            continue
        with _opened(child, where) as store:
            trial = trial_named(store, child)
            served_by = engine or _engine_of(store, trial, device)
            mine = child_of(store, trial, served_by, where.console).timed_by(served_by)
            if parent is None and not found:
                found.append(parent_of(store, trial, mine, where.console))
            found.append(mine)
    asked = {model.is_gguf: model.timed_in for model in found if model.timed_in}
    first: dict[Path, Artefact] = {}
    for model in found:
        told = model.timed_by(engine) if engine else replace(model, timed_in=model.timed_in or asked.get(model.is_gguf))
        first.setdefault(model.path.resolve(), told)
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


def _engine_of(store: Store, trial: models.TrialRow, device: str) -> str:
    """The engine of the trial's scenario. Raises UsageError where that is on another device."""
    asked = scenario_in(store.find_search(trial.search_id))
    if asked.device != device:
        raise UsageError(
            f"trial {trial.id} was searched for {asked.engine} on {asked.device}; give --device {asked.device}, or to "
            f"time it on {device}, name the engine: --engine {' or '.join((*FOLDER_ENGINES, *GGUF_ENGINES))}"
        )
    return asked.engine


def _parent(name: str) -> Artefact:
    if is_gguf(name):
        return Artefact("parent", artefact_at(Path(name)).path)
    return Artefact("parent", folder_of(checkpoint_of(name)))
