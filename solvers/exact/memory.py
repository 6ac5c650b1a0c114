"""The memory that an exact search may use. It is counted before anything is allocated.

It counts the memory that a search holds beside the problem it was given. This file does not know what is held.
"""

from solvers.errors import MemoryLimitError

MEMORY_BYTES = 2e9
"""The memory that a search may take by default."""
LEAST_BYTES = 1e8
"""With less, a MIP solver hardly starts."""


def checked_memory(memory_bytes: float) -> float:
    """The given memory, checked. Raises MemoryLimitError where it is less than `LEAST_BYTES`."""
    if not memory_bytes >= LEAST_BYTES:
        given, least = f"{memory_bytes / 1e6:g} MB", f"{LEAST_BYTES / 1e6:g} MB"
        raise MemoryLimitError(f"{given} of memory is too little for the exact solver; give at least {least}")
    return memory_bytes


class CrowdedError(Exception):
    """The search would need more memory than it may use."""


class Held:
    """Bytes that several things hold together, and the most that they may."""

    def __init__(self, most_bytes: float):
        self.most_bytes = most_bytes
        self.bytes = 0

    def check(self, more_bytes: float) -> None:
        """Raises CrowdedError where so much more is too much."""
        if self.bytes + more_bytes > self.most_bytes:
            raise CrowdedError
