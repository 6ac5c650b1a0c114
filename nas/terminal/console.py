"""The consoles that everything is printed on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, cast

from rich.console import Console
from rich.text import Text

from nas.terminal.printable import printable


class Terminal(Console):
    """Where everything is printed. Names and paths of the user's are in it: brackets are brackets, and what would
    steer the terminal is shown, not obeyed."""

    def __init__(
        self, *, stderr: bool = False, file: IO[str] | None = None, width: int | None = None, quiet: bool = False
    ):
        super().__init__(stderr=stderr, file=file, width=width, quiet=quiet, markup=False, emoji=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """Rich asks here for every string, those in a table's cells as well."""
        return super().render_str(printable(text), **how)


console = Terminal()


def talk_beside(as_json: bool) -> Console:
    """Where work is talked about: not where its JSON goes."""
    return Terminal(stderr=True) if as_json else console


Progress = bool | Callable[[str], None] | Console
"""True: a bar on a terminal, else lines, on standard error. False: nothing. A function gets each line. A console is
written to."""


def console_of(progress: Progress) -> Console:
    """The console that shows progress as it was asked for."""
    if isinstance(progress, Console):
        return progress
    if callable(progress):
        return Terminal(file=cast(IO[str], _Lines(progress)))
    return Terminal(stderr=True, quiet=not progress)


@dataclass(frozen=True)
class _Lines:
    """A file that hands each line that is written to a function."""

    heard: Callable[[str], None]
    _begun: list[str] = field(default_factory=list)

    def write(self, text: str) -> int:
        *whole, rest = ("".join(self._begun) + text).split("\n")
        self._begun[:] = [rest]
        for line in whole:
            self.heard(line)
        return len(text)

    def flush(self) -> None:
        """Lines are handed over as they end."""

    def isatty(self) -> bool:
        return False
