"""Memory that a pass frees is kept for the next pass, so that its time does not depend on what the process did before.
glibc keeps large blocks or returns them to the system, depending on the sizes it has seen. If it returns them, every
pass spends up to half of its time on fresh pages, and a model and its control may spend different times. Other C
libraries are left unchanged.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MIB = 2**20


@contextmanager
def kept_memory() -> Iterator[None]:
    """Memory that is freed inside the `with` returns to the system only after its end."""
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        # After a call glibc no longer adapts. These values are those that it reaches in a process that frees large
        # blocks.
        libc.mallopt(_MMAP_MAX, 65536)
        libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
        libc.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
        libc.malloc_trim(0)
