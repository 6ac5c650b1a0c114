"""Memory that is freed goes back to the system at once. glibc raises the size from which it does so to that of the
blocks it has seen, 32 MiB at most, and keeps smaller ones: a process that reads a model matrix by matrix then holds a
gigabyte of gaps. Other C libraries are left unchanged.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MMAP_THRESHOLD = -3
_SMALL, _USUAL = 1 << 20, 1 << 25


@contextmanager
def returned_memory() -> Iterator[None]:
    """Blocks of a mebibyte or more that are freed inside this `with` are returned. After it, only those that glibc
    would return in a process that frees large blocks."""
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _USUAL)
        libc.malloc_trim(0)
