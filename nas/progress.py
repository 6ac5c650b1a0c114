"""Progress of long work on a person's terminal: a bar per stage, or a line now and then where there is no terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Where no terminal shows a bar, a line each time this share more is done.
_LINE_EVERY = 0.25


class Bar:
    """How far one stage is; several tasks may report to it."""

    def __init__(self, console: Console, name: str):
        self._console = console
        self._name = name
        self._states: dict[int, tuple[int, int]] = {}
        self._bars: Progress | None = None
        self._printed = 0.0
        if console.is_terminal:
            columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                       TimeRemainingColumn())  # fmt: skip
            self._bars = Progress(*columns, console=console)
            self._bars.start()
            self._task = self._bars.add_task(name, total=None)

    def expect(self, task: int, total: int) -> None:
        """Announce a task, so that the whole is known before all of them report."""
        self._states[task] = (0, total)

    def __call__(self, task: int, done: int, total: int) -> None:
        self._states[task] = (done, total)
        all_done, all_total = (sum(column) for column in zip(*self._states.values(), strict=True))
        if self._bars is not None:
            self._bars.update(self._task, completed=all_done, total=all_total)
        elif all_total and all_done / all_total >= self._printed + _LINE_EVERY:
            self._printed = all_done / all_total
            self._console.print(f"{self._name}: {all_done}/{all_total}")

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()


@contextmanager
def bar(console: Console, name: str) -> Iterator[Bar]:
    shown = Bar(console, name)
    try:
        yield shown
    finally:
        shown.close()
