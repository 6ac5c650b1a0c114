"""The store: everything measured and every trial, kept and found again.

    with Store.open() as store:
        known = store.scores(keys)          # measure only the others, then
        store.add_scores(rows)

Each method is one short transaction, and returns rows of `db/models.py` that are cut loose from it: changing one
changes nothing else. A write is kept whole or not at all. Only the driver process of a search writes its rows, but any
number of processes may write at once.

This file knows which rows are written when. It does not know what a content key is made of (its callers do), how a
database is opened (`db/connect.py`), or how a condition is read (`db/where.py`).
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Engine, Table, delete, exc, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from db.connect import Access, can_write, connect, explained, locate
from db.errors import NotFoundError, QueryError
from db.evaluations import EvaluationRow, TaskGroupRow
from db.find_search import find_search
from db.measured import KnownOption, Measured, by_key, known_options
from db.migrate import migrate
from db.models import (
    OF_THE_CHILD,
    Base,
    CostRow,
    DistillationRow,
    FailureRow,
    OptionRow,
    ScoreRow,
    SearchRow,
    SearchStatus,
    StageRow,
    TrialRow,
    WholeTimeRow,
    now,
)
from db.patience import USUAL, Patience
from db.proofs import take_better_proof
from db.replace_costs import replace_costs
from db.rows import checked, table_of, values
from db.same_child import LARGEST, forget, lock, merged, share, the_trial, with_twins
from db.tuning import TuneTrialRow
from db.where import column, condition

Row = TypeVar("Row", StageRow, FailureRow, WholeTimeRow)


class Store:
    """An open database. Close it, or use it as a context manager."""

    def __init__(self, engine: Engine, is_read_only: bool = False) -> None:
        self.is_read_only = is_read_only
        """Opened to read, where nobody here may write: every method that writes raises DatabaseError."""
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        # Rows that belong together are read as they were at one moment; SQLite does so by itself.
        is_postgresql = engine.dialect.name == "postgresql"
        self._reader = engine.execution_options(isolation_level="REPEATABLE READ") if is_postgresql else engine

    @classmethod
    def open(cls, url: str | Path | None = None, access: Access = "create", patience: Patience = USUAL) -> Self:
        """Open the database at `url`, upgrading it, and creating it if `access` is "create"; to "read", one that may
        not be written will do.

        `url` is an SQLAlchemy URL or the path of an SQLite file; by default NAS_DB, else `nas.db` in NAS_HOME, else in
        `~/.puzzle-nas`. `patience` is with other processes that lock it. Raises DatabaseTooNewError,
        ForeignDatabaseError, or DatabaseError where it cannot be opened.
        """
        place = locate(url)
        engine = connect(place, access, patience)
        with ExitStack() as otherwise, explained(place):
            otherwise.callback(engine.dispose)
            migrate(engine, access, patience)
            otherwise.pop_all()
        return cls(engine, access == "read" and not can_write(place))

    @property
    def url(self) -> str:
        """Where it is, as SQLAlchemy writes it, its password included."""
        return self._engine.url.render_as_string(hide_password=False)

    @property
    def place(self) -> str:
        """Where it is, as it may be shown."""
        return self._engine.url.render_as_string()

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Searches

    def add_search(self, search: SearchRow) -> SearchRow:
        """Write it; where its id is known already, replace all but its first moment and what `set_removal` wrote."""
        row = values(search)
        with self._writing() as session:
            insert = self._insert(SearchRow).values(row)
            changed = {name: insert.excluded[name] for name in row if name not in ("id", "created_at", "removal")}
            session.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changed))
            return session.get_one(SearchRow, search.id)

    def set_search_status(self, search_id: str, status: SearchStatus) -> None:
        """Raises NotFoundError where there is no such search."""
        with self._writing() as session:
            session.execute(update(SearchRow).where(SearchRow.id == search_id).values(status=status, updated_at=now()))
            if session.get(SearchRow, search_id) is None:
                raise NotFoundError(f"no search has the id {search_id!r}")

    def set_removal(self, search_id: str, removal: dict[str, Any]) -> None:
        """Keep what was measured of the parent without whole layers. Raises RowError."""
        written = checked(SearchRow, {"removal": removal}, f"search {search_id}")
        with self._writing() as session:
            session.execute(update(SearchRow).where(SearchRow.id == search_id).values(written))

    def find_search(self, text: str) -> SearchRow:
        """The search with the id `text`; else the latest with that name; else the only one whose id starts so.

        Raises NotFoundError, with the nearest names, where there is none, and with the ids where there are several.
        """
        return find_search(self.searches(), text, self.place)

    def searches(self) -> list[SearchRow]:
        """Latest first."""
        with self._reading() as session:
            return list(session.scalars(select(SearchRow).order_by(SearchRow.updated_at.desc(), SearchRow.id)))

    # Measured things

    def scores(self, keys: Collection[str]) -> dict[str, ScoreRow]:
        """Those of `keys` that are known."""
        return self._measured(ScoreRow, keys)

    def add_scores(self, rows: Sequence[ScoreRow]) -> None:
        """Keep each whose key is not known yet. Raises RowError and then keeps none."""
        self._add_measured(ScoreRow, rows)

    def costs(self, keys: Collection[str]) -> dict[str, CostRow]:
        """Those of `keys` that are known."""
        return self._measured(CostRow, keys)

    def add_costs(self, rows: Sequence[CostRow]) -> None:
        """Keep each whose key is not known yet. Raises RowError and then keeps none."""
        self._add_measured(CostRow, rows)

    def replace_costs(self, rows: Sequence[CostRow]) -> None:
        """Write each, in place of what its key had; a search of such a cost is no longer measured to the end, until it
        is run again. Raises RowError and then keeps none."""
        with self._writing() as session:
            replace_costs(session, self._insert(table_of(CostRow)), rows)

    def distillations(self, keys: Collection[str]) -> dict[str, DistillationRow]:
        """Those of `keys` that are known."""
        return self._measured(DistillationRow, keys)

    def add_distillations(self, rows: Sequence[DistillationRow]) -> None:
        """Keep each whose key is not known yet. Raises RowError and then keeps none."""
        self._add_measured(DistillationRow, rows)

    def evaluations(self, child_key: str) -> list[EvaluationRow]:
        """All of a child, by task and metric."""
        query = select(EvaluationRow).where(EvaluationRow.child_key == child_key)
        with self._reading() as session:
            return list(session.scalars(query.order_by(EvaluationRow.task, EvaluationRow.metric, EvaluationRow.key)))

    def add_evaluations(self, rows: Sequence[EvaluationRow]) -> None:
        """Keep each whose key is not known yet. Raises RowError and then keeps none."""
        self._add_measured(EvaluationRow, rows)

    def task_groups(self, keys: Collection[str]) -> dict[str, TaskGroupRow]:
        """Those of `keys` that are known."""
        return self._measured(TaskGroupRow, keys)

    def add_task_groups(self, rows: Sequence[TaskGroupRow]) -> None:
        """Keep each whose key is not known yet. Raises RowError and then keeps none."""
        self._add_measured(TaskGroupRow, rows)

    def tune_trials(self, parent_digest: str) -> list[TuneTrialRow]:
        """All of a parent, by study, in the order they were tried."""
        query = select(TuneTrialRow).where(TuneTrialRow.parent_digest == parent_digest)
        with self._reading() as session:
            return list(session.scalars(query.order_by(TuneTrialRow.study, TuneTrialRow.number)))

    def add_tune_trial(self, row: TuneTrialRow) -> None:
        """Keep it, unless its key is known: another process tried that number of the study first. Raises RowError."""
        self._add_measured(TuneTrialRow, [row])

    # Options of a search

    def set_options(self, search_id: str, rows: Sequence[OptionRow]) -> None:
        """Make `rows` the search's options, in place of any it had."""
        assert all(row.search_id == search_id for row in rows), f"an option of another search than {search_id}"
        written = [values(row) for row in rows]
        with self._writing() as session:
            session.execute(delete(OptionRow).where(OptionRow.search_id == search_id))
            if written:
                session.execute(self._insert(table_of(OptionRow)), written)

    def options(self, search_id: str) -> list[KnownOption]:
        """In slot order, each with its score, costs and distillation where they are known."""
        with self._reading() as session:
            return known_options(session, search_id)

    # Trials

    def add_trial(self, trial: TrialRow) -> TrialRow:
        """Write it, unless its key is known: then the row already there is returned, with the better proof of the two:
        one for the budget itself before one for limits near it, then the smaller gap.

        Measurements of the same child under another trial are this one's, too, and the other way round.
        """
        with self._writing() as session:
            session.execute(self._insert(TrialRow).values(values(trial)).on_conflict_do_nothing(index_elements=["key"]))
            row = session.scalars(select(TrialRow).where(TrialRow.key == trial.key)).one()
            lock(session, row)
            take_better_proof(row, trial)
            row = with_twins(session, row)
            share(session, row, [name for name in OF_THE_CHILD if getattr(trial, name) is not None])
            return row

    def as_added(self, trial: TrialRow) -> TrialRow:
        """The trial that `add_trial` would find: the row that has its key, else the trial with the measurements of its
        child. Nothing is written, and a trial that is not there has no id."""
        with self._reading() as session:
            row = session.scalars(select(TrialRow).where(TrialRow.key == trial.key)).first()
            return row or with_twins(session, trial)

    def trial_with_twins(self, trial_id: int) -> TrialRow:
        """The trial as it is now, with what was measured of the same child under other trials written into it. Raises
        ValueError where there is none."""
        with self._writing() as session:
            return with_twins(session, the_trial(session, trial_id, to_write=True))

    def built_child(self, search_id: str, architecture: str) -> str | None:
        """The key of the child of this architecture that the search built last; None where it built none."""
        query = select(TrialRow.child_key).where(
            TrialRow.search_id == search_id, TrialRow.architecture == architecture, TrialRow.kl.is_not(None)
        )
        with self._reading() as session:
            return session.scalars(query.order_by(TrialRow.id.desc()).limit(1)).first()

    def delete_trials(self, trial_ids: Collection[int]) -> list[str]:
        """Forget these trials; what was measured of them stays with other trials of the same child, and scores, costs
        and distillations stay in any case. Returns the keys of the children that no trial is any more.

        Raises NotFoundError, and forgets none, where there is no such trial.
        """
        with self._writing() as session:
            return forget(session, [the_trial(session, trial_id, to_write=True) for trial_id in sorted(set(trial_ids))])

    def update_trial(self, trial_id: int, **columns: Any) -> TrialRow:
        """Change some columns. `details` are put into those that are there, where None takes one away and the parent's
        are put into the parent's. Raises RowError for a column the table has not, NotFoundError where there is no such
        trial."""
        fixed = sorted({"id", "key", "search_id", "created_at"} & columns.keys())
        if fixed:
            raise ValueError(f"trial {trial_id}: {', '.join(fixed)} never changes; add another trial")
        written = checked(TrialRow, columns, f"trial {trial_id}")
        more = written.pop("details", None)
        with self._writing() as session:
            trial = the_trial(session, trial_id, to_write=True)
            for name, value in written.items():
                setattr(trial, name, value)
            if more is not None:
                trial.details = merged(trial.details, more)
            share(session, trial, [name for name in OF_THE_CHILD if name in written])
            return trial

    def own_child_path(self, trial_id: int, path: str, export_format: str) -> TrialRow:
        """Note that the trial's child is what stands at `path`, and no other trial's is."""
        with self._writing() as session:
            session.execute(update(TrialRow).where(TrialRow.child_path == path).values(child_path=None))
            trial = the_trial(session, trial_id, to_write=True)
            trial.child_path = path
            trial.details = trial.details | {"export_format": export_format}
            return trial

    def trial(self, trial_id: int) -> TrialRow:
        """Raises ValueError where there is none."""
        with self._reading() as session:
            return the_trial(session, trial_id)

    def trials(
        self,
        search_id: str | None = None,
        where: str | None = None,
        sort: str | None = None,
        descending: bool = False,
        limit: int | None = None,
    ) -> list[TrialRow]:
        """Those that match, in the order they were added, or by the column `sort` with its empty ones last.

        `where` is a condition of `db/where.py`; raises its QueryError.
        """
        query = select(TrialRow)
        if search_id is not None:
            query = query.where(TrialRow.search_id == search_id)
        if where is not None:
            query = query.where(condition(where))
        if sort is not None:
            by = column(sort)
            query = query.order_by((by.desc() if descending else by.asc()).nulls_last())
        query = query.order_by(TrialRow.id.desc() if descending else TrialRow.id)
        query = query.limit(None if limit is None else min(limit, LARGEST))
        try:
            with self._reading() as session:
                return list(session.scalars(query))
        except exc.DataError as error:  # PostgreSQL's, where SQLite would make it infinite or empty
            raise QueryError(f"the condition cannot be computed on these trials: {error.orig}") from error

    # Times of whole architectures

    def add_whole_time(self, row: WholeTimeRow) -> None:
        """Keep it, unless another process has kept that take of the architecture. Raises RowError."""
        with self._writing() as session:
            session.execute(self._insert(WholeTimeRow).values(values(row)).on_conflict_do_nothing())

    def whole_times(self, search_id: str) -> list[WholeTimeRow]:
        """In the order they were added."""
        return self._of_search(WholeTimeRow, search_id)

    def remove_whole_times(self, search_id: str, architectures: Collection[str]) -> None:
        those = delete(WholeTimeRow).filter_by(search_id=search_id).where(WholeTimeRow.architecture.in_(architectures))
        with self._writing() as session:
            session.execute(those)

    # Stages and failures

    def add_stage(self, stage: StageRow) -> StageRow:
        return self._add(StageRow, stage)

    def stages(self, search_id: str) -> list[StageRow]:
        """In the order they were added."""
        return self._of_search(StageRow, search_id)

    def add_failure(self, failure: FailureRow) -> FailureRow:
        return self._add(FailureRow, failure)

    def failures(self, search_id: str) -> list[FailureRow]:
        """In the order they were added."""
        return self._of_search(FailureRow, search_id)

    # One transaction each

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with explained(self._engine.url), Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with explained(self._engine.url), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def _insert(self, into: type[Base] | Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that can say ON CONFLICT, which each dialect spells for itself."""
        return sqlite.insert(into) if self._engine.dialect.name == "sqlite" else postgresql.insert(into)

    def _add(self, model: type[Row], row: Row) -> Row:
        with self._writing() as session:
            return session.scalars(self._insert(model).values(values(row)).returning(model)).one()

    def _of_search(self, model: type[Row], search_id: str) -> list[Row]:
        with self._reading() as session:
            return list(session.scalars(select(model).where(model.search_id == search_id).order_by(model.id)))

    def _measured(self, model: type[Measured], keys: Collection[str]) -> dict[str, Measured]:
        with self._reading() as session:
            return by_key(session, model, keys)

    def _add_measured(self, model: type[Measured], rows: Sequence[Measured]) -> None:
        # In one order for all writers, or two on PostgreSQL could wait for each other.
        written = sorted((values(row) for row in rows), key=lambda row: str(row["key"]))
        if not written:
            return
        with self._writing() as session:
            insert = self._insert(table_of(model)).on_conflict_do_nothing(index_elements=["key"])
            session.execute(insert, written)
