"""How a command ends: mistakes of the user's and failures of the machine's as one line, a bug with its traceback, a
signal with 128 + its number.

Ctrl-C (SIGINT) ends with 130, SIGTERM (`kill`, `timeout`, Slurm, `nas stop`) with 143, and both in the same way. Knows
no command.
"""

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from time import monotonic
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from nas.errors import NasError, UsageError
from nas.printable import printable

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
"""Exit statuses: after an error, after options that make no sense, and after Ctrl-C, as shells have it."""
_A_BUG = (
    "this is a bug in puzzle-nas: please report it in the project's issue tracker, with the lines above and the command"
)
_ONE_REQUEST_S = 5.0
"""`timeout` and batch systems signal a process and then its group, people press Ctrl-C twice: within so many seconds of
the first signal all others are the same request, and do not disturb the end."""


_AGAIN_S = 0.05
_WHOLE = {"_frozen_importlib", "importlib", "db", "sqlalchemy", "logging"}
"""Modules that are not left half-way. Libraries written in C abort where an import is interrupted, or swallow what
interrupts it; a transaction that is left open keeps the database locked; Python itself swallows what `logging` raises
around a fork, such as Ray's."""


class _Signals:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt, once."""

    def __init__(self) -> None:
        self._asked_at = -inf
        self._number = int(signal.SIGINT)
        self._has_ended = False

    def watch(self) -> None:
        """From now on, whatever else was said of them: a shell's background jobs start deaf to Ctrl-C."""
        self._asked_at, self._has_ended = -inf, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)
        signal.signal(signal.SIGALRM, self._interrupt)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = monotonic()
        if now - self._asked_at < _ONE_REQUEST_S:
            return
        self._asked_at, self._number = now, number
        self._interrupt(number, frame)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Now, or as soon as what is not to be left half-way is through."""
        if self._has_ended:  # and yet the process is still there
            os._exit(128 + self._number)
        if _is_in_one_piece(frame):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
            return
        raise KeyboardInterrupt

    def end(self) -> int:
        """The last word is said: from now on a signal ends the process at once, and without a word. Returns the status
        to exit with after a signal. Ray passes a KeyboardInterrupt on as a new one, so it is not the exception that
        knows which signal it was."""
        self._has_ended = True
        return 128 + self._number


def _is_in_one_piece(frame: FrameType | None) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _WHOLE:
            return True
        frame = frame.f_back
    return False


_SIGNALS = _Signals()
end_on_signals = _SIGNALS.watch


@contextmanager
def clear_errors(debug: bool = False) -> Iterator[None]:
    """The user's mistakes and the machine's failures as one line. Anything else is a bug: it comes through, and its
    traceback ends with where to report it. `debug`: a line comes after its traceback, too."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; finished work is kept, and the same command resumes", err=True)
        raise SystemExit(_SIGNALS.end()) from None
    except BrokenPipeError:
        raise  # `nas trials | head`: Typer ends quietly
    except (NasError, OSError) as error:  # a TimeoutError is an OSError
        if debug:
            typer.echo(printable("".join(traceback.format_exception(error))), err=True, nl=False)
        typer.echo(printable(f"error: {error}"), err=True)
        raise SystemExit(MISUSED if isinstance(error, UsageError) else FAILED) from None
    except Exception as error:
        error.add_note(_A_BUG)  # Typer shows none on exceptions of its own
        raise
    finally:
        # Libraries that are unloaded print the traceback of what interrupts them.
        _SIGNALS.end()


class Commands(TyperGroup):
    """Commands that end clearly: inside of Typer, which answers Ctrl-C with a bare status of its own."""

    def invoke(self, ctx: Any) -> Any:
        with clear_errors(ctx.params["debug"]):
            return super().invoke(ctx)
