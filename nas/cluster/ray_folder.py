"""Where a Ray of our own keeps its sockets, whose paths an operating system wants short."""

import os
import sys
from pathlib import Path

from nas.errors import SocketPathError

# The longest path that Ray appends to its folder, and the longest path a socket may have (`man 7 unix`, less its 0).
_BEHIND = len("/ray/session_2026-11-28_03-25-42_011596_4194304/sockets/plasma_store")
_LONGEST_BYTES = (104 if sys.platform == "darwin" else 108) - 1
_SYSTEMS = Path("/tmp")


def ray_folder() -> str | None:
    """The folder to give Ray; None where the one it takes of its own accord will do.

    Ray's own is `ray` in $RAY_TMPDIR, else in $TMPDIR, else in /tmp. A $TMPDIR that is too long gives way to /tmp: it
    was set for temporary files of all kinds. Raises SocketPathError where $RAY_TMPDIR is, or where /tmp cannot be
    written.
    """
    read = ["RAY_TMPDIR", *(["TMPDIR"] if sys.platform.startswith("linux") else [])]
    variable = next((name for name in read if name in os.environ), None)
    if variable is None:
        return None
    most = _LONGEST_BYTES - _BEHIND
    asked = len(os.fsencode(os.path.abspath(os.environ[variable])))
    if asked <= most:
        return None
    folder = _SYSTEMS / "ray"
    is_writable = os.access(folder if folder.exists() else _SYSTEMS, os.W_OK | os.X_OK)
    if variable == "TMPDIR" and is_writable:
        return str(folder)
    why = "" if variable == "RAY_TMPDIR" else f", and {folder} cannot be written"
    raise SocketPathError(
        f"${variable} is {asked} bytes long, which leaves too little for the paths of Ray's sockets{why}; set "
        f"RAY_TMPDIR to a folder of at most {most} bytes"
    )
