"""Files that others may read as much as any other: safetensors lets nobody but their owner."""

from pathlib import Path


def open_as_usual(folder: Path) -> None:
    """Give the files of a folder that was just made what the umask gives a new file, going by the folder itself."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)
