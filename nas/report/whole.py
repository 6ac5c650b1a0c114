"""A file that appears whole or not at all. Knows nothing of what is in it."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> Path:
    """Write beside, sync, rename. Makes the parent folder. Raises OSError."""
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
    return path
