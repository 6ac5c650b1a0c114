"""Trials asked for by a condition: found, or deleted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from db import models
from db.store import Store
from nas.errors import UsageError
from nas.files.database import opened
from nas.files.forget import Deleted, Numbers
from nas.files.forget import delete_trials as forget
from nas.terminal.console import Progress
from nas.view.plain import plain

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]


@dataclass(frozen=True)
class TrialQuery:
    """Which trials, and in which order. A field that is None asks for nothing.

    `search`: only its trials. `where`: a condition on columns, such as "latency_ratio < 0.6". `sort`: a column. `ids`:
    their numbers, such as "3,5,8-12". `limit`: at most so many.
    """

    search: str | None = None
    where: str | None = None
    sort: str | None = None
    descending: bool = False
    ids: str | None = None
    limit: int | None = None

    @property
    def names_trials(self) -> bool:
        """Whether it is of some trials, and not of all."""
        return self.search is not None or self.where is not None or self.ids is not None


@dataclass(frozen=True)
class TrialList:
    """The trials that a query found, all searches of the database by their ids, and the database's place."""

    trials: tuple[models.TrialRow, ...]
    searches: Mapping[str, models.SearchRow]
    place: str


def find_trials(query: TrialQuery, db: str | Path | None = None, progress: Progress = True) -> TrialList:
    """The trials that match. Raises `db.errors.QueryError` for a condition that cannot be read, and
    `db.errors.NotFoundError` for a search or a number that is not there."""
    with opened(db, "read", progress) as store:
        return _found(query, store)


def delete_trials(
    query: TrialQuery, confirm: Callable[[TrialList], bool], db: str | Path | None = None, progress: Progress = True
) -> Deleted | None:
    """Delete the trials that match if `confirm` agrees; None where it does not. A child in the database's own home goes
    with its last trial. Raises UsageError for a query that names no trials, and as `find_trials` does."""
    if not query.names_trials:
        raise UsageError("the query names no trials, so all would be deleted; give a search, `where` or `ids`")
    with opened(db, "write", progress) as store:
        found = _found(query, store)
        return forget(store, found.trials, found.searches) if confirm(found) else None


def trials(
    search: str | None = None, *, where: str | None = None, sort: str | None = None, db: str | Path | None = None
) -> "pandas.DataFrame | list[dict[str, Any]]":
    """The trials of one search, or of all, that match a condition on their columns, such as "latency_ratio < 0.6".

    A pandas frame with a row a trial where pandas is installed, else a list of mappings. `sort`: a column. Raises
    `db.errors.QueryError` for a condition that cannot be read.
    """
    rows = [plain(trial) for trial in find_trials(TrialQuery(search, where, sort), db).trials]
    try:
        import pandas  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return rows
    return pandas.DataFrame(rows, columns=[column.name for column in models.TrialRow.__table__.columns])


def _found(query: TrialQuery, store: Store) -> TrialList:
    search_id = None if query.search is None else store.find_search(query.search).id
    limit = None if query.ids else query.limit
    trials: Sequence[models.TrialRow] = store.trials(search_id, query.where, query.sort, query.descending, limit)
    if query.ids is not None:
        trials = Numbers.parse(query.ids).pick(trials)[: query.limit]
    return TrialList(tuple(trials), {search.id: search for search in store.searches()}, store.place)
