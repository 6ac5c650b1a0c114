"""Bring a database to the tables this code knows, whoever else is opening it at the same moment.

This file knows revisions and locks. It does not know the columns: `db/migrations/versions/` does.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Column, Connection, Engine, MetaData, Table, Text, inspect, select, text

from db.connect import Access, can_write, shown
from db.errors import DatabaseError, DatabaseTooNewError, ForeignDatabaseError
from db.models import Base
from db.patience import USUAL, Patience

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = max(path.name[:4] for path in Path(__file__).with_name("migrations").joinpath("versions").glob("[0-9]*.py"))
"""The newest revision: lets an up-to-date database open without importing Alembic."""

VERSION_TABLE = "puzzle_nas_version"
"""Not Alembic's default name, which Optuna takes when it shares a database with us."""

_LOCK = 0x6E61732D6462  # "nas-db"


def migrate(engine: Engine, access: Access = "create", patience: Patience = USUAL) -> None:
    """Create or upgrade our tables, in one transaction; `patience` is with other processes at SQLite's file.

    Nothing is created unless `access` is "create", and a database that is open for reading is left as it is where it
    cannot be written.

    Raises DatabaseTooNewError where the database is at a revision this code has no file for, ForeignDatabaseError where
    it has tables of our names and is not ours, or none of ours to read.
    """
    with engine.connect() as connection:
        revision = _revision(connection)
        if revision == HEAD:
            return
        if revision is None and engine.dialect.name == "sqlite":
            _check_ours(connection)  # before anything of the file is changed
    if revision is None and access != "create":
        raise ForeignDatabaseError(
            f"{shown(engine.url)} holds none of our tables, so no search was run into it; name another with --db or "
            "NAS_DB"
        )
    if access == "read" and not can_write(engine.url):
        _check_known(engine, revision)
        raise DatabaseError(
            f"{shown(engine.url)} is at revision {revision}, older than {HEAD}, and cannot be upgraded where it cannot "
            f"be written; copy it to a folder of your own and name the copy with --db, or run `nas trials` as its owner"
        )
    if engine.dialect.name == "sqlite":
        _keep_a_write_ahead_log(engine, patience)
    with engine.execution_options(writes=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        revision = _revision(connection)  # again: another process may have been here while we waited
        if revision is None:
            _check_ours(connection)
        if revision != HEAD:
            _upgrade(connection, revision)


def _check_ours(connection: Connection) -> None:
    """Raises ForeignDatabaseError where somebody else's tables have our names."""
    taken = sorted({*inspect(connection).get_table_names()} & {*Base.metadata.tables})
    if taken:
        tables = f"a table {taken[0]}" if len(taken) == 1 else f"tables {', '.join(taken)}"
        raise ForeignDatabaseError(
            f"{shown(connection.engine.url)} has {tables} of another program, and no {VERSION_TABLE} of ours; it is "
            "left as it is: name another database with --db or NAS_DB"
        )


def _revision(connection: Connection) -> str | None:
    """The database's revision; None before our first table."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    version = Table(VERSION_TABLE, MetaData(), Column("version_num", Text))
    return connection.execute(select(version.c.version_num)).scalar()


def _upgrade(connection: Connection, revision: str | None) -> None:
    # Here, because it takes as long to import as everything else of a `nas trials` together.
    from alembic import command

    _check_known(connection.engine, revision)
    command.upgrade(_alembic(connection), "head")


def _check_known(engine: Engine, revision: str | None) -> None:
    """Raises DatabaseTooNewError."""
    from alembic.script import ScriptDirectory

    known = [script.revision for script in ScriptDirectory.from_config(_alembic(None)).walk_revisions()]
    assert known[0] == HEAD, f"migrations/versions/ ends at {known[0]}, HEAD says {HEAD}"
    if revision is not None and revision not in known:
        raise DatabaseTooNewError(
            f"{shown(engine.url)} is at revision {revision}, written by a newer puzzle-nas; this one knows "
            f"{HEAD}: upgrade the package (pip install -U puzzle-nas), or name another database with NAS_DB"
        )


def _alembic(connection: Connection | None) -> "Config":
    from alembic.config import Config

    config = Config(attributes={"connection": connection, "version_table": VERSION_TABLE})
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config


def _keep_a_write_ahead_log(engine: Engine, patience: Patience) -> None:
    """Readers and the writer do not wait for each other. The file remembers it.

    Changing to it needs the file alone for a moment. While another connection writes, SQLite refuses that at once,
    whatever its timeout.
    """
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        (mode,) = patience.until_free(shown(engine.url), lambda: cursor.execute("PRAGMA journal_mode = WAL").fetchone())
    finally:
        connection.close()
    if mode != "wal":
        raise DatabaseError(f"{shown(engine.url)}: its file system cannot hold a write-ahead log; use a local disk")
