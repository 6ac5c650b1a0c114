"""One timing at a time on a device, for all programs, users and clusters, because other work makes a timing wrong. The
lock is on a file of the whole machine. The system holds it for a process, so it is free as soon as its holder ends, in
any way. A waiting process says which process holds it.
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
    """No other timing of this package runs on the device inside the `with`. While another process holds the lock,
    `told` gets a message at once and then every few seconds. `folder`: the lock's folder; None: one that all users of
    the machine share.
    """
    path = (folder or _shared_folder()) / f"puzzle-nas-timing-{_name(device)}.lock"
    # Every user may lock the file, whoever created it.
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
    """The folder of the lock. It is not $TMPDIR, which may differ between users."""
    return Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())


def _name(device: str) -> str:
    """A name of the device that is the same in all processes, although each may number its visible GPUs from 0."""
    found = torch.device(device)
    if found.type in ("cpu", "mps"):
        return found.type  # There is one.
    if found.type != "cuda":
        return f"{found.type}-{found.index or 0}"
    return f"cuda-{torch.cuda.get_device_properties(found).uuid}"


def _holder(path: Path) -> int | None:
    """The process that has the lock, according to Linux; None if Linux does not say, or no process has it any more."""
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
