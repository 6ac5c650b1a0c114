"""Answers counted while more are looked for: a bar on a terminal, elsewhere a line now and then.

Says first what is looked for and for how long, so that nobody waits without a word.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console

from nas.solve.effort import said
from nas.solve.pool import Alternative
from nas.terminal.progress import Bar, bar

_APART_S, _SILENT_S = 1.0, 10.0
"""Seconds between two lines of answers, at least; after as long a silence the solver's progress is printed."""


class Counted:
    """How many of `count` there are. Lines are printed where no bar is."""

    def __init__(self, console: Console, count: int):
        self._console, self._count = console, count
        self._found = 0
        self._began = self._spoke = monotonic()

    def found(self, answer: Alternative) -> None:
        """Another one."""
        self._found += 1
        if self._found == 1 or self._passed() > _APART_S:
            self._say(f"score {answer.trial.score:.4f}")

    def solving(self, score: float, bound: float) -> None:
        """How the next one is coming along."""
        if self._passed() > _SILENT_S:
            self._say(said(score, bound))

    def _passed(self) -> float:
        return monotonic() - self._spoke

    def _say(self, more: str) -> None:
        self._spoke = monotonic()
        elapsed = f"{self._spoke - self._began:.0f} s"
        self._console.print(f"{self._found} of {self._count} found, {elapsed}: {more}", soft_wrap=True, highlight=False)


class _OnTerminal(Counted):
    """The same as a bar, whose clock runs by itself."""

    def __init__(self, console: Console, count: int, shown: Bar):
        super().__init__(console, count)
        self._shown = shown
        shown(0, 0, count)

    def found(self, answer: Alternative) -> None:
        self._found += 1
        self._shown(0, self._found, self._count)

    def solving(self, score: float, bound: float) -> None:
        pass


@contextmanager
def counted(console: Console, count: int, total_s: float) -> Iterator[Counted]:
    """Counts for as long as the block takes."""
    console.print(
        f"looking for up to {count} architectures, {total_s:g} s at most; Ctrl-C keeps those found",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    if not console.is_terminal:
        yield Counted(console, count)
        return
    with bar(console, "architectures") as shown:
        yield _OnTerminal(console, count, shown)
