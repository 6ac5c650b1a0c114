"""Where the database is and how it is opened: a URL or a path becomes an engine; a driver's complaint becomes advice.

A command that only asks makes no database, and reads one that nobody may write: an SQLite file on a read-only disk, or
of another user.

This file knows SQLite's and PostgreSQL's ways. It does not know the tables.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url

from db.errors import DatabaseError
from db.patience import ATTEMPT_S, USUAL, Patience

HOME_DATABASE = "nas.db"
"""The name of a home's own database."""
DATABASE_SUFFIXES = (".db", ".sqlite", ".sqlite3")

Access = Literal["create", "write", "read"]
"""The access a command needs: a database, made if there is none; an existing one; an existing one, to read."""

_ALLOW = (
    "allow writing to the file and its folder, or copy it where that is allowed and name the copy with --db or NAS_DB"
)
_SQLITE_ADVICE = {
    "SQLITE_NOTADB": "it is not an SQLite database; name another file, or move this one away",
    "SQLITE_CORRUPT": "it is damaged; restore a copy, or save what `sqlite3 FILE .recover` still reads",
    "SQLITE_READONLY": f"it cannot be written; {_ALLOW}",
    "SQLITE_CANTOPEN": f"it cannot be opened; {_ALLOW}",
    "SQLITE_FULL": "the disk is full; free some space and run again: nothing of this write was kept",
    "SQLITE_IOERR": "the disk failed or is full; check it and run again: nothing of this write was kept",
    "SQLITE_BUSY": "another process kept it locked; run again when that process is done",
}
_NOT_OUR_TABLES = ("no such table", "no such column")
_OTHER_TABLES = "its tables are not the ones this program makes; restore a copy, or name another with --db or NAS_DB"
_POSTGRES_ADVICE = {
    "42501": "this user lacks the rights; ask the owner for them (GRANT), or name another database",
    "25006": "it is open for reading only; name a database that can be written",
    "42P01": _OTHER_TABLES,
    "42703": _OTHER_TABLES,
}


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database; None for a server's."""
    there = make_url(url)
    return Path(str(there.database)).absolute() if there.drivername == "sqlite" else None


def locate(text: str | Path | None) -> URL:
    """The URL `text` means: itself, the SQLite file at that path, or by default NAS_DB, else `nas.db` in NAS_HOME.

    Raises DatabaseError for a database we do not keep rows in.
    """
    text = str(text or os.environ.get("NAS_DB") or Path(os.environ.get("NAS_HOME") or "~/.puzzle-nas") / HOME_DATABASE)
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
        return url.set(drivername="postgresql+psycopg")  # SQLAlchemy 2.1 does so, 2.0 does not
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise DatabaseError(f"{url.drivername}:// is not supported; use sqlite:// or postgresql://")
    if url.drivername == "sqlite" and (url.database or ":memory:").startswith((":memory:", "file:")):
        raise DatabaseError(f"{url} does not name a file; write it like sqlite:////path/nas.db")
    return url


def shown(url: URL) -> str:
    """The file's path, or the URL without its password."""
    return str(url.database) if url.drivername == "sqlite" else url.render_as_string(hide_password=True)


def can_write(url: URL) -> bool:
    """Whether this process may write an SQLite file that is there; of a server only a try would tell, so True.

    The folder counts too: SQLite puts its write-ahead log beside the file.
    """
    if url.drivername != "sqlite":
        return True
    assert url.database is not None
    return all(_allows(place, os.W_OK) for place in (Path(url.database), Path(url.database).parent))


def connect(url: URL, access: Access = "create", patience: Patience = USUAL) -> Engine:
    """An engine whose transactions are what they say, on both databases. `patience` is with SQLite's locks.

    Raises DatabaseError where the driver is missing, the file's folder cannot be made, or, unless `access` is "create",
    there is no such file.
    """
    if url.drivername == "sqlite":
        return _connect_sqlite(url, access, patience)
    try:
        return create_engine(url, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise DatabaseError("PostgreSQL needs its driver: pip install 'puzzle-nas[postgres]'") from error


def _connect_sqlite(url: URL, access: Access, patience: Patience) -> Engine:
    assert url.database is not None
    path = Path(url.database)
    if access == "create":
        _check_can_be_a_file(path)
        _make_folder(path)
        how = "mode=rwc"
    else:
        _check_is_there(path)
        if access == "write" and not can_write(url):
            raise DatabaseError(f"{path}: it cannot be written; {_ALLOW}")  # before the work rather than after
        how = _reading(path) if access == "read" and not can_write(url) else "mode=rw"
    engine = create_engine(url, creator=partial(_open_sqlite, path, how, min(ATTEMPT_S, patience.seconds)))

    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        patience.until_free(shown(url), lambda: _prepare_sqlite(connection))

    def execute(cursor: sqlite3.Cursor, statement: str, parameters: Any, _context: object) -> bool:
        patience.until_free(shown(url), lambda: cursor.execute(statement, parameters))
        return True  # it is done, and not to be done again

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "do_execute", execute)
    return engine


def _open_sqlite(path: Path, how: str, timeout_s: float) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?{how}", uri=True, timeout=timeout_s, check_same_thread=False
    )


def _check_can_be_a_file(path: Path) -> None:
    """Raises DatabaseError where a folder lies there, a file where its folder would, or links that lead in a circle."""
    if os.path.isdir(path):
        raise DatabaseError(f"{path} is a folder, not a database; {_near(path / HOME_DATABASE)}")
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DatabaseError(
                f"{path}: its symbolic links lead in a circle; name another with --db or NAS_DB"
            ) from None
    if os.path.isfile(path.parent):
        raise DatabaseError(f"there is no database {path}; {_near(path)}")


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(
            f"{path}: its folder cannot be made ({error.strerror}: {error.filename}); name another with NAS_DB"
        ) from error


def _check_is_there(path: Path) -> None:
    """Raises DatabaseError, with the databases that lie near, where there is no file, or one that may not be read."""
    _check_can_be_a_file(path)
    try:
        path.stat()
    except PermissionError:
        pass  # said below
    except OSError:
        raise DatabaseError(f"there is no database {path}; {_near(path)}") from None
    if not _allows(path, os.R_OK):
        raise DatabaseError(f"{path}: this user may not read it; allow that, or name another with --db or NAS_DB")


def _near(path: Path) -> str:
    try:
        names = sorted(each.name for each in path.parent.iterdir() if each.suffix in DATABASE_SUFFIXES)
    except NotADirectoryError:
        return f"{path.parent} is a file, not a folder; name another with --db, NAS_DB or NAS_HOME"
    except OSError:
        return f"there is no folder {path.parent}; name another with --db, NAS_DB or NAS_HOME"
    if not names:
        return "`nas search` makes one; --db, NAS_DB or NAS_HOME says where"
    nearest = get_close_matches(path.name, names, n=3, cutoff=0.0)
    return f"beside it there is {', '.join(str(path.parent / name) for name in nearest)}"


def _reading(path: Path) -> str:
    """How SQLite is to read a file that may not be written.

    The write-ahead log's index cannot be made then. Where there is no log, the file is all there is, and is taken as it
    is; where there is one, a writer is at work or was killed, and its index is there too.
    """
    log, index = (path.with_name(f"{path.name}{suffix}") for suffix in ("-wal", "-shm"))
    if not os.path.exists(log) or log.stat().st_size == 0:
        return "mode=ro&immutable=1"
    if not os.path.exists(index):
        raise DatabaseError(
            f"{path}: its last rows are in {log.name}, which cannot be read without writing beside it; copy both to a "
            "folder of your own, and name the copy with --db"
        )
    return "mode=ro"


def _allows(place: Path, what: int) -> bool:
    """Whether this process may do `what` there. A read-only disk refuses even root."""
    return os.access(place, what, effective_ids=os.access in os.supports_effective_ids)


def _prepare_sqlite(connection: sqlite3.Connection) -> None:
    connection.isolation_level = None  # the driver begins no transaction of its own; `_begin_sqlite` does
    connection.execute("PRAGMA foreign_keys = ON")
    # A power failure, but not a killed process, may lose the last commits; the file stays whole.
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: one that read first and writes later is refused without waiting.
    mode = "IMMEDIATE" if connection.get_execution_options().get("writes") else "DEFERRED"
    connection.exec_driver_sql(f"BEGIN {mode}")


@contextmanager
def explained(url: URL) -> Iterator[None]:
    """Turn what the driver says of the database and its tables into DatabaseError; leave what it says of the statement
    alone."""
    try:
        yield
    except (exc.DBAPIError, sqlite3.Error) as error:
        advice = _advice(error.orig if isinstance(error, exc.DBAPIError) else error)
        if advice is None:
            raise
        raise DatabaseError(f"{shown(url)}: {advice}") from error


def _advice(error: BaseException | None) -> str | None:
    if isinstance(error, sqlite3.Error):
        if str(error).startswith(_NOT_OUR_TABLES):
            return f"{error}; {_OTHER_TABLES}"
        name = getattr(error, "sqlite_errorname", "")
        return next((advice for code, advice in _SQLITE_ADVICE.items() if name.startswith(code)), None)
    if (state := getattr(error, "sqlstate", None)) in _POSTGRES_ADVICE:
        return f"{_POSTGRES_ADVICE[state]}. It said: {error}"
    # A PostgreSQL error without an SQLSTATE comes from the way there, not from the server.
    if type(error).__name__ == "OperationalError" and getattr(error, "sqlstate", None) is None:
        return f"the server cannot be reached; is it running? It said: {error}"
    return None
