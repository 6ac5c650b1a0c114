"""How a command ends: mistakes of the user's and failures of the machine's as one line, Ctrl-C with 130.

Knows no command.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from nas.printable import printable

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


@contextmanager
def clear_errors() -> Iterator[None]:
    """The user's mistakes and the machine's failures as one line; bugs keep their traceback."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing finished is lost, the same command goes on from here", err=True)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        raise  # `nas trials | head`: Typer ends quietly
    except (ValueError, OSError, TimeoutError) as error:
        typer.echo(printable(f"error: {error}"), err=True)
        raise SystemExit(1) from None


class Commands(TyperGroup):
    """Commands that end clearly: inside of Typer, which answers Ctrl-C with a bare status of its own."""

    def invoke(self, ctx: Any) -> Any:
        with clear_errors():
            return super().invoke(ctx)
