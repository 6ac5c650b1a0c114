"""Folders that a process writes into for itself, and that go with it."""

import os
import platform
import shutil
import uuid
import weakref
from functools import cached_property
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_PARTIAL = ".partial"


def process_folder(parent: Path, name: str) -> Path:
    """A new folder in `parent`, hidden, named after `name` and this process, for the caller to rename or remove. It is
    as open as the umask says. Those of the same name that processes of this machine left when they were killed are
    removed."""
    parent.mkdir(parents=True, exist_ok=True)
    # Another machine's process may have the same number.
    begin = f".{name}.{platform.node()}-"
    for folder in parent.iterdir():
        if folder.name.startswith(begin) and folder.name.endswith(_PARTIAL):
            process = folder.name.removeprefix(begin).partition("-")[0]
            if process.isdecimal() and not psutil.pid_exists(int(process)):
                shutil.rmtree(folder, ignore_errors=True)
    made = parent / f"{begin}{os.getpid()}-{uuid.uuid4().hex}{_PARTIAL}"
    made.mkdir()
    return made


class ProcessFolder:
    """Such a folder, made when somebody asks for its path, and removed with this value or at the end of the process."""

    def __init__(self, parent: Path, name: str):
        self._parent, self._name = parent, name

    @cached_property
    def path(self) -> Path:
        folder = process_folder(self._parent, self._name)
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder
