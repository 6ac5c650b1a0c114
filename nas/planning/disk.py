"""The disk that a search has its home on."""

from pathlib import Path
from shutil import disk_usage

_SHARE = 0.5
"""The share of its free bytes that files may take which a stage could do without."""


def free_bytes(home: Path) -> int:
    """The free bytes of the disk that `home` is on, or will be on."""
    return disk_usage(next(folder for folder in (home, *home.absolute().parents) if folder.exists())).free


def leaves_room(held_bytes: float, free: int) -> bool:
    """Whether files of so many bytes leave enough of the free bytes to others."""
    return held_bytes <= _SHARE * free
