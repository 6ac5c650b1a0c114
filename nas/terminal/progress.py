"""How far long work is: a bar for each stage on a person's terminal, lines now and then where there is none.

Where there is none, a stage that is done at once says nothing. Another says after a second what it does, and from then
on no ten seconds pass without a line, whether its workers have anything new to tell or not.
"""

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Lock, Thread, main_thread
from time import monotonic
from typing import Any, Protocol

from rich.console import Console
from rich.control import Control
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.segment import ControlType
from rich.table import Column
from rich.text import Text

from nas.terminal.signals import SIGNALS

_FIRST_S = 1.0
_EVERY_S = 8.0  # Late by what keeps all threads of the process waiting, it is still not ten.
_LOOK_EVERY_S = 0.25


class Heard(Protocol):
    """Hears that a task has done so much of its total, and in words what it is at."""

    def __call__(self, task: int, done: float, total: float, doing: str = "") -> None: ...


class Bar:
    """How far one stage is, in `unit`s, like "tokens"; several tasks may report to it, each a part of the whole.

    `total` is the whole where it is known beforehand; else it is the sum of the tasks' parts. `doing` says in words
    what the stage is at before the first report. `clock` gives seconds.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        unit: str = "",
        total: float | None = None,
        doing: str = "",
        *,
        clock: Callable[[], float] = monotonic,
    ):
        self._console, self._name, self._unit, self._total, self._doing = console, name, unit, total, doing
        self._parts: dict[int, float] = {}
        self._done: dict[int, float] = {}
        self._words: dict[int, str] = {}
        self._clock = clock
        self._opened_s = clock()
        self._next_line_s = self._opened_s + _FIRST_S
        self._lines = 0
        self._first: tuple[float, float] | None = None
        """When something was first done, or begun again, and how much: the time before it says nothing of the speed."""
        self._lock = Lock()

    def expect(self, parts: Sequence[float]) -> Heard:
        """Announce further tasks, by how many of the units each does; returns what hears of them, counted from 0."""
        with self._lock:
            first = len(self._parts)
            self._parts |= dict(enumerate(parts, first))
        return lambda task, done, total, doing="": self(first + task, done, total, doing)

    def __call__(self, task: int, done: float, total: float, doing: str = "") -> None:
        """As `Heard`; a total of 0 leaves what is known of that."""
        with self._lock:
            self._words[task] = doing
            if total > 0:
                before = self.done
                self._done[task] = self._parts.setdefault(task, total) * done / total
                if (self._first is None and self.done > 0) or self.done < before:
                    self._first = self._clock(), self.done

    def say(self, doing: str) -> None:
        """The state of the stage, in words, until a task reports."""
        with self._lock:
            self._doing = doing
            self._words.clear()

    @property
    def done(self) -> float:
        return sum(self._done.values())

    @property
    def total(self) -> float | None:
        """None where it is not known."""
        return sum(self._parts.values()) or None if self._total is None else self._total

    def said(self) -> str:
        """How far it is, in words."""
        with self._lock:
            done, total, doing = self.done, self.total, self._now_doing()
            elapsed_s, left_s = self._clock() - self._opened_s, self._left_s()
        units = f"{int(done + 1e-6):,}" + (f" of {int(total):,}" if total is not None else "") + f" {self._unit}"
        parts = [units] if self._unit and (done or not doing) else []
        parts += [doing] if doing else []
        parts += [f"{_minutes(elapsed_s)} elapsed"] if elapsed_s >= 1 else []
        parts += [] if left_s is None else [f"about {_minutes(left_s)} left"]
        return ", ".join(parts)

    def _now_doing(self) -> str:
        """The state of the unfinished task that is least far, so that two tasks do not take turns."""
        shares = {task: self._done.get(task, 0.0) / (self._parts.get(task) or 1.0) for task in sorted(self._words)}
        if not shares:
            return self._doing
        return self._words[min(shares, key=lambda task: shares[task])]

    def _left_s(self) -> float | None:
        """At the speed since something was first done; None where that says nothing."""
        if self._first is None or self.total is None or not self._first[1] < self.done < self.total:
            return None
        since_s, before = self._clock() - self._first[0], self._first[1]
        return since_s * (self.total - self.done) / (self.done - before) if since_s >= 1 else None

    def line(self) -> None:
        """Print how far it is."""
        self._lines += 1
        self._next_line_s = self._clock() + _EVERY_S
        said = self.said()
        self._console.print(f"{self._name}: {said}" if said else self._name, soft_wrap=True, highlight=False)

    def tick(self) -> None:
        """Print how far it is, where it is time to."""
        if self._clock() >= self._next_line_s:
            self.line()

    def end(self) -> None:
        """Print how long all took, where it was long enough to tell in between how far it was."""
        if self._unit and self._lines > 1:
            is_whole = self.total is not None and 0 < self.total < self.done + 1e-6
            whole = f"{int(self.total or 0):,} {self._unit}" if is_whole else "done"
            took = _minutes(self._clock() - self._opened_s)
            self._console.print(f"{self._name}: {whole} in {took}", soft_wrap=True, highlight=False)


@contextmanager
def bar(
    console: Console, name: str, unit: str = "", total: float | None = None, doing: str = "", *, at_once: bool = False
) -> Iterator[Bar]:
    """A bar, or its lines, for as long as the block takes; the arguments are those of `Bar`. `at_once`: the first line
    does not wait for a second to pass."""
    shown = Bar(console, name, unit, total, doing)
    with _on_terminal(console, name, shown) if console.is_interactive else _in_lines(shown, at_once):
        yield shown


@contextmanager
def loading(console: Console, name: str) -> Iterator[Bar]:
    """For the imports of a command that needs PyTorch: they take seconds, and hold up all threads. Nothing else is done
    meanwhile, so a signal ends the process at once."""
    wipe = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), ControlType.SHOW_CURSOR)
    with (
        bar(console, name, doing="loading PyTorch", at_once=True) as shown,
        SIGNALS.nothing_begun(lambda: console.control(wipe)),  # A bar hides the cursor.
    ):
        yield shown


@contextmanager
def _in_lines(shown: Bar, at_once: bool) -> Iterator[None]:
    over = Event()

    def talk() -> None:
        try:
            while not over.wait(_LOOK_EVERY_S):
                shown.tick()
        except (BrokenPipeError, SystemExit):  # rich turns the first into the second
            # Nobody listens any more: `nas search job.yaml | head`.
            signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)

    if at_once:
        shown.line()
    talking = Thread(target=talk, daemon=True)
    talking.start()
    try:
        yield
    finally:
        over.set()
        talking.join()
    shown.end()


@contextmanager
def _on_terminal(console: Console, name: str, shown: Bar) -> Iterator[None]:
    columns = (TextColumn("{task.description:<22}"), _DrawnBar(shown), _Said(shown))
    with Progress(*columns, console=console) as rows:
        rows.add_task(name, total=None)
        try:
            yield
        finally:
            # A bar that never knew its whole tells nothing when it is over.
            rows.live.transient = shown.total is None


class _DrawnBar(BarColumn):
    """Asks how far it is each time the terminal is drawn anew."""

    def __init__(self, shown: Bar):
        super().__init__(bar_width=20)
        self._shown = shown

    def render(self, task: Task) -> ProgressBar:
        task.total, task.completed = self._shown.total, self._shown.done
        return super().render(task)


class _Said(ProgressColumn):
    """The same in words."""

    def __init__(self, shown: Bar):
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))
        self._shown = shown

    def render(self, task: Task) -> Text:
        return Text(self._shown.said())


def rarely(heard: Callable[..., None], every_s: float = 2.0) -> Callable[..., None]:
    """`heard`, but not asked again before so many seconds have passed."""
    asked_s = -math.inf

    def ask(*arguments: Any) -> None:
        nonlocal asked_s
        if monotonic() - asked_s >= every_s:
            asked_s = monotonic()
            heard(*arguments)

    return ask


def _minutes(seconds: float) -> str:
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
