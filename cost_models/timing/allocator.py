"""Memory that a pass frees is kept for the next one, so that a pass takes as long whatever the process did before.

glibc keeps large blocks or hands them back to the system, by the sizes it has seen. Where it hands them back every pass
pays for fresh pages, with up to half of its time; and a model and its control need not pay alike. Other C libraries are
left as they are.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MIB = 2**20


@contextmanager
def kept_memory() -> Iterator[None]:
    """Nothing that is freed inside the `with` goes back to the system before its end."""
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        # Told once, glibc adapts no more: this is where it ends in a process that frees large blocks.
        libc.mallopt(_MMAP_MAX, 65536)
        libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
        libc.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
        libc.malloc_trim(0)
