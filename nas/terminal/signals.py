"""SIGINT and SIGTERM as KeyboardInterrupt: raised once, and again wherever it got lost on its way.

Python prints and forgets what is raised in a `__del__`, in a weakref's callback or around a fork; libraries catch
everything, or raise something else instead. So a request stays until it is ended or answered, and a timer looks after
it meanwhile.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from time import monotonic
from types import FrameType
from typing import Any

LAST_WORD = "interrupted; finished work is kept, and the same command resumes"

_ONE_REQUEST_S = 5.0
"""`timeout` and batch systems signal a process and then its group, and people press Ctrl-C twice. All signals within so
many seconds of the first are one request."""
_AGAIN_S = 0.1
_START_S = 30.0
"""How long a request waits for a start that is under way."""
_WHOLE = {"_frozen_importlib", "importlib", "logging", "weakref", "db", "sqlalchemy"}
"""Modules that are not left half-way. Libraries written in C abort where an import is interrupted, or swallow what
interrupts it; a lock stays locked; a transaction that is left open keeps the database locked."""


class _Signals:
    """One request to end, from the signal to the last word."""

    def __init__(self) -> None:
        self._asked_at = -inf
        self._number = int(signal.SIGINT)
        self._is_raised = False
        self._is_answered = False
        self._has_ended = False
        self._tidy: Callable[[], None] | None = None
        self._waits_for_other = False
        self._starts_until = -inf

    @property
    def is_asked(self) -> bool:
        """Whether a request is neither answered nor ended."""
        return self._asked_at > -inf and not self._is_answered and not self._has_ended

    def watch(self) -> None:
        """Hear both signals from now on, also where they were ignored: a shell's background jobs ignore Ctrl-C."""
        self._asked_at, self._is_answered, self._has_ended = -inf, False, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)
        signal.signal(signal.SIGALRM, self._look_after)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = monotonic()
        if now - self._asked_at < _ONE_REQUEST_S:
            return
        self._asked_at, self._number = now, number
        self._is_raised = self._is_answered = False
        sys.unraisablehook = self._print_unless_ours
        self._interrupt(frame)

    def _interrupt(self, frame: FrameType | None) -> None:
        """Interrupt now, or once no module runs that must not be left half-way; never while it is being answered."""
        if self._has_ended:  # and yet the process is still there
            os._exit(128 + self._number)
        if self._tidy is not None:
            self._leave(self._tidy)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        if monotonic() < self._starts_until or _is_in_one_piece(frame) or (self._is_raised and _is_on_its_way()):
            return
        self._is_raised = True
        raise KeyboardInterrupt

    def _look_after(self, number: int, frame: FrameType | None) -> None:
        """The timer."""
        if self._waits_for_other:
            self._waits_for_other = signal.signal(signal.SIGTERM, self._ask) == self._ask
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S if self._waits_for_other else 0)
        if self.is_asked:
            self._interrupt(frame)

    def _leave(self, tidy: Callable[[], None]) -> None:
        self._has_ended = True  # A further signal does not wait for us.
        with suppress(Exception):
            tidy()
        with suppress(OSError):
            os.write(2, f"{LAST_WORD}\n".encode())  # sys.stderr may be in use.
        os._exit(128 + self._number)

    def _print_unless_ours(self, lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(lost)

    @contextmanager
    def nothing_begun(self, tidy: Callable[[], None]) -> Iterator[None]:
        """While the block only imports and reads, a signal ends the process at once, after `tidy()`: there is nothing
        to finish, and imports cannot be interrupted."""
        self._tidy = tidy
        try:
            yield
        finally:
            self._tidy = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While the block starts something that puts an answer of its own to SIGTERM in place of ours: ours is put
        back, and a request waits for the start. Ray crashes, or leaves processes behind, where it starts only half."""
        answer = signal.getsignal(signal.SIGTERM)
        self._starts_until = monotonic() + _START_S
        self._waits_for_other = answer == self._ask
        if self._waits_for_other:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        try:
            yield
        except SystemExit:  # the other answer, before the timer has put ours back
            if callable(answer):
                answer(signal.SIGTERM, None)
            raise
        finally:
            self._waits_for_other, self._starts_until = False, -inf
            if signal.getsignal(signal.SIGTERM) != answer:  # Off the main thread nobody may set one.
                signal.signal(signal.SIGTERM, answer)

    def answer(self) -> None:
        """The caller caught the KeyboardInterrupt and continues on purpose: the request is answered."""
        if self.is_asked:
            self._is_answered = True
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.unraisablehook = sys.__unraisablehook__

    def end(self) -> int:
        """The last word is said: a further request ends the process at once, and without a word. Returns the status to
        exit with after a signal. Ray passes a KeyboardInterrupt on as a new one, so it is not the exception that
        knows which signal it was."""
        if self.is_asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self._has_ended = True
        return 128 + self._number


def _is_in_one_piece(frame: FrameType | None) -> bool:
    if frame is not None and frame.f_globals.get("__name__") == "db.patience":
        return False  # It waits for another process, and holds nothing.
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _WHOLE:
            return True
        frame = frame.f_back
    return False


def _is_on_its_way() -> bool:
    """Whether a `finally`, an `except` or a generator that is closed runs because of a KeyboardInterrupt."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, KeyboardInterrupt | GeneratorExit):
            return True
        error = error.__context__
    return False


SIGNALS = _Signals()
