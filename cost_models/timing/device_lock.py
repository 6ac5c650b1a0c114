"""One timing at a time on a device, whichever program, user or cluster asks: what runs beside a timing spoils it.

The lock is a file's of the whole machine, held by the system for a process: it is free as soon as its holder ends,
however that ends. A waiting process says which one holds it.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

_TELL_EVERY_S = 5.0


@contextmanager
def alone_on(
    device: str, told: Callable[[str], None] = lambda words: None, folder: Path | None = None
) -> Iterator[None]:
    """No other timing of ours runs on the device inside the `with`.

    `told` hears at once, and then every few seconds, that another has it. `folder`: where the lock lies; None: where
    every user of the machine finds it.
    """
    path = (folder or _shared_folder()) / f"puzzle-nas-timing-{_name(device)}.lock"
    # Every user may lock it, whoever made it.
    held = FileLock(path, mode=0o666)
    waited_s = 0.0
    while True:
        try:
            held.acquire(timeout=_TELL_EVERY_S if waited_s else 0)
            break
        except Timeout:
            holder = _holder(path)
            who = "another search" if holder is None else f"another search (process {holder})"
            told(f"waiting: {who} is timing on this machine's {device}")
            waited_s += _TELL_EVERY_S
    try:
        yield
    finally:
        held.release()


def _shared_folder() -> Path:
    """Not $TMPDIR, which may be a user's own."""
    return Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())


def _name(device: str) -> str:
    """The same device has one name in all processes, though each may number the GPUs it is shown from 0."""
    found = torch.device(device)
    if found.type in ("cpu", "mps"):
        return found.type  # There is one.
    if found.type != "cuda":
        return f"{found.type}-{found.index or 0}"
    return f"cuda-{torch.cuda.get_device_properties(found).uuid}"


def _holder(path: Path) -> int | None:
    """The process that has the lock, as Linux tells it; None where it does not, or nobody has it any more."""
    table = Path("/proc/locks")
    if not table.is_file() or not path.exists():
        return None
    inode = os.stat(path).st_ino
    for line in table.read_text().splitlines():
        words = line.split()
        # Like "1: FLOCK  ADVISORY  WRITE 4711 08:01:131077 0 EOF"; who waits has an arrow for its second word.
        if len(words) >= 6 and words[1] != "->" and words[5].rpartition(":")[2] == str(inode) and int(words[4]) > 0:
            return int(words[4])
    return None
