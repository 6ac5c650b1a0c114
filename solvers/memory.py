"""How much memory an exact search may take: counted before anything is allocated, never found out afterwards.

What counts is what a search holds beside the problem it was given. This file does not know what is held.
"""

MEMORY_BYTES = 2_000_000_000
"""What a search may take unless it is told otherwise."""
LEAST_BYTES = 100_000_000
"""With less, a MIP solver hardly starts."""


class CrowdedError(Exception):
    """More than may be held."""


class Held:
    """Bytes that several things hold together, and the most that they may."""

    def __init__(self, most_bytes: float):
        self.most_bytes = most_bytes
        self.bytes = 0

    def check(self, more_bytes: float) -> None:
        """Raises CrowdedError where so much more is too much."""
        if self.bytes + more_bytes > self.most_bytes:
            raise CrowdedError
