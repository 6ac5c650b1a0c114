"""The files that commands write for a user: where they may go, and how they appear. Does not know what is in them."""

import os
from pathlib import Path

from nas.errors import UsageError


def check_output(path: Path) -> Path:
    """The path itself, before the work rather than after. Raises UsageError where a folder stands there, and OSError
    where its folder cannot be written."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        return path  # A device or a pipe is written into.
    folder = next(folder for folder in path.resolve().parents if folder.exists())
    if not folder.is_dir():
        raise NotADirectoryError(f"{path}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{path}: the folder {folder} cannot be written")
    return path


def image_format(path: Path) -> str:
    """The ending of a file to draw to. Raises UsageError for one that is not drawn."""
    format = path.suffix.lower().removeprefix(".")
    if format not in ("svg", "png"):
        raise UsageError(f"cannot draw to {path}; give a file that ends in .svg or .png")
    return format


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file that appears whole or not at all, and its folder where that is missing.

    A symbolic link stays, and the file that it names is written. A device or a pipe stays too, and is written into.
    Raises UsageError where a folder stands there, OSError naming the file where it cannot be written.
    """
    check_output(path)
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            _replace(path.resolve(), content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return path


def _replace(path: Path, content: bytes) -> None:
    """Write beside, sync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as written:
            written.write(content)
            written.flush()
            os.fsync(written.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
