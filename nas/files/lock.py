"""One process at a time: a lock that is a file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout


@contextmanager
def alone(lock: str, waits: Callable[[], object]) -> Iterator[None]:
    """The block runs when no other process has the lock; `waits` is called where another one has it."""
    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        waits()
        held.acquire()
    try:
        yield
    finally:
        held.release()
