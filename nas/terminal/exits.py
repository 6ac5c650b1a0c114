"""How a command ends: mistakes of the user's and failures of the machine's as one line, a bug with its traceback, a
signal with 128 + its number.

Ctrl-C (SIGINT) ends with 130, SIGTERM (`kill`, `timeout`, Slurm, `nas stop`) with 143, and both in the same way. Knows
no command.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from nas.errors import NasError, UsageError
from nas.terminal.printable import printable
from nas.terminal.signals import LAST_WORD, SIGNALS

FAILED, MISUSED = 1, 2
"""Exit statuses: after an error, after options that make no sense, and after Ctrl-C, as shells have it."""
_A_BUG = (
    "this is a bug in puzzle-nas: please report it in the project's issue tracker, with the lines above and the command"
)

end_on_signals = SIGNALS.watch


@contextmanager
def clear_errors(debug: bool = False) -> Iterator[None]:
    """The user's mistakes and the machine's failures as one line. Anything else is a bug: it comes through, and its
    traceback ends with where to report it. `debug`: a line comes after its traceback, too."""
    try:
        with _one_line(debug):
            yield
    except KeyboardInterrupt:
        raise _interrupted() from None
    finally:
        # Libraries that are unloaded print the traceback of what interrupts them.
        SIGNALS.end()


@contextmanager
def _one_line(debug: bool) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # `nas trials | head`: Typer ends quietly
    except Exception as error:
        if SIGNALS.is_asked:  # and a library made something else of it
            raise KeyboardInterrupt from None
        if not isinstance(error, NasError | OSError):  # a TimeoutError is an OSError
            error.add_note(_A_BUG)  # Typer shows none on exceptions of its own
            raise
        SIGNALS.end()  # the line is the last word
        if debug:
            typer.echo(printable("".join(traceback.format_exception(error))), err=True, nl=False)
        typer.echo(printable(f"error: {error}"), err=True)
        raise SystemExit(MISUSED if isinstance(error, UsageError) else FAILED) from None


def _interrupted() -> SystemExit:
    """Say the last word; the exit that follows it."""
    status = SIGNALS.end()
    typer.echo(LAST_WORD, err=True)
    return SystemExit(status)


class Commands(TyperGroup):
    """Commands that end clearly: inside of Typer, which answers Ctrl-C with a bare status of its own."""

    def invoke(self, ctx: Any) -> Any:
        with clear_errors(ctx.params["debug"]):
            return super().invoke(ctx)
