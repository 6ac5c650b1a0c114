"""The first step of a submitted job on the head: check that its search can run there, then become the search.

Travels beside the job and runs under the head's own Python, which may lack everything: the standard library alone.
"""

import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ASKED = "asked.json"
"""`versions` by package; `home`; `beacon`, a file in it, or null; `files` to be read; `db`, a path, a URL, or null."""
READY = "the head is ready: "
"""Begins the line that says that all is well."""
FAULT = "error on the head: "
"""Begins each line that says what is not."""

_ANSWER_S = 5.0


def main() -> None:
    """Print what is wrong and end with 1, or become the search."""
    kept = Path(ASKED)
    asked = json.loads(kept.read_text(encoding="utf-8"))
    kept.unlink()  # It may hold the database's password.
    found = list(_faults(asked))
    for fault in found:
        print(f"{FAULT}{fault}", flush=True)
    if found:
        sys.exit(1)
    if asked["beacon"]:
        beacon = Path(asked["home"], asked["beacon"])
        if not beacon.exists():
            print(f"home: {asked['home']} on the head is not the folder of that name where the job was submitted")
        beacon.unlink(missing_ok=True)
    print(READY + ", ".join([*(f"{name} {version}" for name, version in asked["versions"].items()), sys.executable]))
    sys.stdout.flush()
    if asked["db"]:
        os.environ["NAS_DB"] = asked["db"]
    os.execv(sys.executable, [sys.executable, "-m", "nas.cli.main", "search", "job.yaml"])


def _faults(asked: dict[str, Any]) -> Iterator[str]:
    yield from _packages(asked["versions"])
    unseen = [file for file in asked["files"] if not os.access(file, os.R_OK)]
    if unseen:
        more = f" and {len(unseen) - 1} more files of the job" if unseen[1:] else ""
        yield f"{unseen[0]}{more} cannot be read there; put the job's files where all nodes find them"
    yield from _folder("home", Path(asked["home"]))
    if asked["db"]:
        yield from _database(asked["db"])


def _packages(versions: dict[str, str]) -> Iterator[str]:
    for name, version in versions.items():
        try:
            there = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield f"{sys.executable} has no {name}; install {name} {version} there and on every node"
            return
        if there != version:
            yield f"{sys.executable} has {name} {there}, and the job is from {version}; install the same on both sides"
            return
    try:
        import_module("nas.cli.main")
    except Exception as error:
        yield f"{sys.executable} cannot import puzzle-nas: {error}; install it there with all it needs"


def _folder(key: str, folder: Path) -> Iterator[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        yield f"{key}: {folder} cannot be written there ({error.strerror}); name a folder that all nodes share"


def _database(db: str) -> Iterator[str]:
    if "://" not in db:
        yield from _folder("the database's folder", Path(db).parent)
        return
    url = urlsplit(db)
    if url.scheme.startswith("postgresql") and url.hostname:
        place = url.hostname, url.port or 5432
        try:
            socket.create_connection(place, timeout=_ANSWER_S).close()
        except OSError as error:
            why = error.strerror or error
            yield f"the database's server {place[0]}:{place[1]} cannot be reached from there ({why})"


if __name__ == "__main__":
    main()
