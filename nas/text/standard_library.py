"""The text every Python installation carries: the standard library's sources and documentation.

Knows which files count and which are held out. The embedded parent was trained on the `train` part, so the `heldout`
part is text it has never seen; the split goes by a hash of the file's path and is the same on every machine. Knows
nothing of tokens.
"""

import os
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from nas.errors import MissingFileError

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}
_HELD_OUT_OF_TEN = 1


def stdlib_files(split: Literal["train", "heldout"]) -> list[Path]:
    """The standard library's `.py` files of one split, sorted by path. About a tenth is held out.

    Raises FileNotFoundError where this Python carries no sources (some embedded distributions ship only bytecode).
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in _sources(root) if path.stat().st_size > 0)
    chosen = [path for path in files if _is_held_out(path.relative_to(root)) == (split == "heldout")]
    if not chosen:
        raise MissingFileError(
            f"no standard library sources under {root}: this Python was installed without them; "
            "name text files of your own under data.train and data.evaluation"
        )
    return chosen


def _sources(root: Path) -> Iterator[Path]:
    """Does not look into the folders it skips: site-packages may hold more files than all the rest."""
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in _SKIPPED_FOLDERS]
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _is_held_out(relative: Path) -> bool:
    return zlib.crc32(relative.as_posix().encode()) % 10 < _HELD_OUT_OF_TEN
