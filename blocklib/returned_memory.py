"""Memory that is freed goes back to the system. glibc raises the size from which it does so to that of the
blocks it has seen, 32 MiB at most, and keeps smaller ones: a process that reads a model matrix by matrix then holds a
gigabyte of gaps. Other C libraries are left unchanged.
"""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MIB = 1 << 20


@contextmanager
def returned_memory() -> Iterator[None]:
    """Blocks of a mebibyte or more that are freed inside this `with` are returned. After it, only those that glibc
    would return in a process that frees large blocks."""
    if (libc := _glibc()) is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _MIB)
    try:
        yield
    finally:
        # After a call glibc no longer adapts. It reaches these values in a process that frees large blocks.
        libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
        libc.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
        give_back()


def give_back() -> None:
    """Return all memory that is free now."""
    gc.collect()  # Models refer to themselves.
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") else None
