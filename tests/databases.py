"""The databases the tests of `db` run on: SQLite always, PostgreSQL where a server and its driver are installed."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text


def _postgres_bin() -> Path | None:
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).parent
    installed = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in installed), key=lambda path: float(path.parent.name), default=None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a throw-away cluster that listens on a socket in its own folder only."""
    binaries = _postgres_bin()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    user = None
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        user = "nobody"
        shutil.chown(folder, user)

    def run(program: str, *arguments: str) -> None:
        log = folder / "commands.log"
        with open(log, "ab") as out:
            subprocess.run([binaries / program, *arguments], user=user, cwd="/", stdout=out, stderr=out, check=True)

    try:
        run("initdb", "-D", f"{folder}/data", "-U", "nas", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        run("pg_ctl", "start", "-w", "-D", f"{folder}/data", "-l", f"{folder}/server.log", "-o", options)
        yield f"postgresql+psycopg://nas@/postgres?host={folder}"
        run("pg_ctl", "stop", "-m", "immediate", "-D", f"{folder}/data")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql(postgres: str) -> str:
    """An empty database on that server."""
    engine = create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/nas.db"
    server: str = request.getfixturevalue("postgresql")
    return server
