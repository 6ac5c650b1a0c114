"""How long we wait for a database that another process has locked, and who hears of it.

SQLite waits silently, and for some locks not at all. So it gives up soon, and we ask it again.
"""

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

WAIT_S = 60
ATTEMPT_S = 1.0
"""How long SQLite waits by itself."""

_TELL_EVERY_S = 8.0
_PAUSE_S = 0.01

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Patience:
    """`told` hears that we wait, after a second and then every few."""

    seconds: float = WAIT_S
    told: Callable[[str], None] = lambda words: None

    def until_free(self, place: str, ask: Callable[[], Answer]) -> Answer:
        """The answer of `ask` as soon as no other process is in its way. Raises what it raises after that long."""
        started = time.monotonic()
        tell_s = ATTEMPT_S
        while True:
            try:
                return ask()
            except sqlite3.OperationalError as error:
                waited_s = time.monotonic() - started
                if not is_locked(error) or waited_s >= self.seconds:
                    raise
            if waited_s >= tell_s:
                tell_s = waited_s + _TELL_EVERY_S
                self.told(f"{place} is locked by another process; waiting, for {self.seconds:.0f} s at most")
            time.sleep(_PAUSE_S)


USUAL = Patience()


def is_locked(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
