"""The consoles that everything is printed on."""

from typing import IO, Any

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
