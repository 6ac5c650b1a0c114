"""Where the database is and how it is opened: a URL or a path becomes an engine; a driver's complaint becomes advice.

This file knows SQLite's and PostgreSQL's ways. It does not know the tables.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url

from db.patience import ATTEMPT_S, WAIT_S, Patience

_SQLITE_ADVICE = {
    "SQLITE_NOTADB": "it is not an SQLite database; name another file, or move this one away",
    "SQLITE_CORRUPT": "it is damaged; restore a copy, or save what `sqlite3 FILE .recover` still reads",
    "SQLITE_READONLY": "it cannot be written; allow writing to the file and its folder, or name another with NAS_DB",
    "SQLITE_CANTOPEN": "it cannot be opened; allow writing to the file and its folder, or name another with NAS_DB",
    "SQLITE_FULL": "the disk is full; free some space and run again: nothing of this write was kept",
    "SQLITE_IOERR": "the disk failed or is full; check it and run again: nothing of this write was kept",
    "SQLITE_BUSY": f"another process kept it locked for {WAIT_S} s; run again when that one is done",
}


class DatabaseError(ValueError):
    """A database that cannot be used as it is. Says which one, why, and what to do."""


def locate(text: str | Path | None) -> URL:
    """The URL `text` means: itself, the SQLite file at that path, or by default NAS_DB, else `nas.db` in NAS_HOME.

    Raises DatabaseError for a database we do not keep rows in.
    """
    text = str(text or os.environ.get("NAS_DB") or Path(os.environ.get("NAS_HOME") or "~/.puzzle-nas") / "nas.db")
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).expanduser().absolute()))
    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError) as error:  # the latter for a port that is no number
        # Not the text itself, which may hold a password.
        raise DatabaseError(
            "the database's URL cannot be read; write it like postgresql://user@host/name or sqlite:////path/nas.db"
        ) from error
    if url.drivername == "postgresql":
        return url.set(drivername="postgresql+psycopg")  # what SQLAlchemy 2.1 makes of it, and 2.0 does not
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise DatabaseError(f"{url.drivername}:// is no database for our rows; use sqlite:// or postgresql://")
    if url.drivername == "sqlite" and (url.database or ":memory:").startswith((":memory:", "file:")):
        raise DatabaseError(f"{url} does not name a file; write it like sqlite:////path/nas.db")
    return url


def shown(url: URL) -> str:
    """The file's path, or the URL without its password."""
    return str(url.database) if url.drivername == "sqlite" else url.render_as_string(hide_password=True)


def connect(url: URL, patience: Patience) -> Engine:
    """An engine whose transactions are what they say, on both databases. `patience` is with SQLite's locks.

    Raises DatabaseError where the driver is missing or the file's folder cannot be made.
    """
    if url.drivername == "sqlite":
        return _connect_sqlite(url, patience)
    try:
        return create_engine(url, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise DatabaseError("PostgreSQL needs its driver: pip install 'puzzle-nas[postgres]'") from error


def _connect_sqlite(url: URL, patience: Patience) -> Engine:
    assert url.database is not None
    folder = Path(url.database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(
            f"{url.database}: its folder cannot be made ({error.strerror}: {error.filename}); name another with NAS_DB"
        ) from error
    engine = create_engine(url, connect_args={"timeout": min(ATTEMPT_S, patience.seconds)})

    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        patience.until_free(shown(url), lambda: _prepare_sqlite(connection))

    def execute(cursor: sqlite3.Cursor, statement: str, parameters: Any, _context: object) -> bool:
        patience.until_free(shown(url), lambda: cursor.execute(statement, parameters))
        return True  # it is done, and not to be done again

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "do_execute", execute)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection) -> None:
    connection.isolation_level = None  # the driver begins no transaction of its own; `_begin_sqlite` does
    connection.execute("PRAGMA foreign_keys = ON")
    # Of a lost power supply, not of a killed process, the last commits may be forgotten; the file stays whole.
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: one that read first and writes later is refused without waiting.
    mode = "IMMEDIATE" if connection.get_execution_options().get("writes") else "DEFERRED"
    connection.exec_driver_sql(f"BEGIN {mode}")


@contextmanager
def explained(url: URL) -> Iterator[None]:
    """Turn what the driver says of the database into DatabaseError; leave what it says of the statement alone."""
    try:
        yield
    except (exc.DBAPIError, sqlite3.Error) as error:
        advice = _advice(error.orig if isinstance(error, exc.DBAPIError) else error)
        if advice is None:
            raise
        raise DatabaseError(f"{shown(url)}: {advice}") from error


def _advice(error: BaseException | None) -> str | None:
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", "")
        return next((advice for code, advice in _SQLITE_ADVICE.items() if name.startswith(code)), None)
    # A PostgreSQL error without an SQLSTATE comes from the way there, not from the server.
    if type(error).__name__ == "OperationalError" and getattr(error, "sqlstate", None) is None:
        return f"the server cannot be reached; is it running? It said: {error}"
    return None
