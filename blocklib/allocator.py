"""What the C library does with memory that is freed: kept for the next pass, or returned to the system at once.

glibc keeps large blocks or returns them, depending on the sizes it has seen. If it returns them, every pass spends up
to half of its time on fresh pages, and a model and its control may spend different times. If it keeps them, a process
that reads a model matrix by matrix ends with a gigabyte of gaps. Other C libraries are left unchanged.
"""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MIB = 2**20


@contextmanager
def kept_memory() -> Iterator[None]:
    """Memory that is freed inside the `with` returns to the system only after its end."""
    yield from _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: -1})


@contextmanager
def returned_memory() -> Iterator[None]:
    """Blocks of a mebibyte or more return to the system when they are freed inside the `with`."""
    yield from _set({_MMAP_THRESHOLD: _MIB})


def give_back() -> None:
    """Return all memory that is free now."""
    gc.collect()  # Models refer to themselves.
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _set(options: dict[int, int]) -> Iterator[None]:
    if (libc := _glibc()) is None:
        yield
        return
    for option, value in options.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        # After a call glibc no longer adapts. These values are those that it reaches in a process that frees large
        # blocks.
        for option, value in ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 * _MIB), (_TRIM_THRESHOLD, 64 * _MIB)):
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") else None
