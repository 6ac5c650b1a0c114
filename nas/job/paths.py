"""Paths as people write them in a job file, made absolute: relative ones, `~`, $VARIABLES, globs, hub ids.

Knows the file system. Does not know what is in the files, and asks no hub whether an id exists. Standard library only.
"""

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from nas.errors import PathError

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_HUB_PAGE = re.compile(r"https?://(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)")
_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


def absolute(text: object, folder: Path) -> Path:
    """The absolute path `text` means in a file that lies in `folder`.

    Raises PathError where it is no path, or names a variable that is not set: a folder called `$SCRATCH` helps nobody.
    """
    if not isinstance(text, str | Path) or not str(text):
        raise PathError(f"{text!r} is not a path")
    expanded = os.path.expandvars(os.path.expanduser(text))
    if undefined := _VARIABLE.search(str(expanded)):
        raise PathError(f"the environment variable {undefined[0]} in {str(text)!r} is not set")
    return Path(os.path.abspath(folder / expanded))


def local_or_hub(text: object, folder: Path) -> str:
    """An absolute path where something lies there; else the text itself where it has the form of a hub id.

    Raises PathError where it is neither.
    """
    path = absolute(text, folder)
    if path.exists():
        return str(path)
    if isinstance(text, str) and _HUB_ID.fullmatch(text):
        return text
    if isinstance(text, str) and "://" in text:
        on_hub = _HUB_PAGE.match(text)
        raise PathError(
            f"{text} is an address; give {f'the hub id alone, {on_hub[1]}' if on_hub else 'a folder or a hub id'}"
        )
    raise PathError(f"there is no {path}")


def matching_files(patterns: Iterable[object], folder: Path, hint: str = "") -> tuple[Path, ...]:
    """The files that paths and globs (`**` included) name: each once, in the order given, a glob's own matches sorted.

    Raises PathError for a path or a glob that names no file, and for a path that is a folder; `hint` at the end.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = absolute(pattern, folder)
        if path.is_dir():
            raise PathError(f"{path} is a folder; name its files, like {path.name}/*.txt{hint}")
        # A file called a[1].txt is meant before the glob of that spelling.
        matches = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        files = [match for match in matches if match.is_file()]
        if not files:
            fault = "matches no file" if glob.has_magic(str(path)) else "does not exist"
            raise PathError(f"{path} {fault}{hint}")
        found |= dict.fromkeys(files)
    return tuple(found)
