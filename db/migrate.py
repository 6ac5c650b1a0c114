"""Bring a database to the tables this code knows, whoever else is opening it at the same moment.

This file knows revisions and locks. It does not know the columns: `db/migrations/versions/` does.
"""

from pathlib import Path

from sqlalchemy import Column, Connection, Engine, MetaData, Table, Text, inspect, select, text

from db.connect import DatabaseError, shown
from db.patience import Patience

HEAD = "0003"
"""The newest revision in `migrations/versions/`: lets an up-to-date database open without importing Alembic."""

VERSION_TABLE = "puzzle_nas_version"
"""Not Alembic's default name, which Optuna takes when it shares a database with us."""

_LOCK = 0x6E61732D6462  # "nas-db"


class DatabaseTooNew(DatabaseError):
    """The database was written by a later version of this package."""


def migrate(engine: Engine, patience: Patience) -> None:
    """Create or upgrade our tables, in one transaction; `patience` is with other processes at SQLite's file.

    Raises DatabaseTooNew where the database is at a revision this code has no file for.
    """
    with engine.connect() as connection:
        if _revision(connection) == HEAD:
            return
    if engine.dialect.name == "sqlite":
        _keep_a_write_ahead_log(engine, patience)
    with engine.execution_options(writes=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        revision = _revision(connection)  # again: another process may have been here while we waited
        if revision != HEAD:
            _upgrade(connection, revision)


def _revision(connection: Connection) -> str | None:
    """The database's revision; None before our first table."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    version = Table(VERSION_TABLE, MetaData(), Column("version_num", Text))
    return connection.execute(select(version.c.version_num)).scalar()


def _upgrade(connection: Connection, revision: str | None) -> None:
    # Here, because it takes as long to import as everything else of a `nas trials` together.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection, "version_table": VERSION_TABLE})
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert known[0] == HEAD, f"migrations/versions/ ends at {known[0]}, HEAD says {HEAD}"
    if revision is not None and revision not in known:
        raise DatabaseTooNew(
            f"{shown(connection.engine.url)} is at revision {revision}, written by a newer puzzle-nas; this one knows "
            f"{HEAD}: upgrade the package (pip install -U puzzle-nas), or name another database with NAS_DB"
        )
    command.upgrade(config, "head")


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
