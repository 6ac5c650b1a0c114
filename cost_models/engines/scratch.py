"""Folders for models that exist only while they are timed. A process that is killed leaves its folder; the next process
that needs one removes it.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "puzzle-nas-model-"
_YOUNG_S = 60.0
"""A folder this young may not be locked yet by the process that made it."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder, removed at the end of the block."""
    _remove_left()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, FileLock(_lock(Path(folder))):
        yield Path(folder)


def _remove_left() -> None:
    """Remove the folders whose processes are gone: nobody holds their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if time.time() - folder.stat().st_mtime < _YOUNG_S:
                continue
            with FileLock(_lock(folder), timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):  # It is in use, another user's, or gone in the meantime.
            continue


def _lock(folder: Path) -> Path:
    return folder / "in-use.lock"
