"""The disk that a search has its home on."""

from pathlib import Path
from shutil import disk_usage

_SHARE = 0.5
"""The share of it that files may take which a stage could do without."""


def free_bytes(home: Path) -> int:
    """What is free where `home` is, or will be."""
    return disk_usage(next(folder for folder in (home, *home.absolute().parents) if folder.exists())).free


def is_kept(held_bytes: float, free: int) -> bool:
    """Whether files of so many bytes leave enough of the free disk to others."""
    return held_bytes <= _SHARE * free
