"""The effort that a question asks of the solver, beside what its search says, and who hears of its progress."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rich.console import Console

from nas.terminal.progress import bar
from solvers.exact.program import Progress
from solvers.exact.settings import Engine, Settings
from solvers.problem import relative_gap


@dataclass(frozen=True)
class Effort:
    """None: as is usual where it is used. `progress` hears of the best score known and of the bound on all."""

    gap: float | None = None
    time_limit_s: float | None = None
    engine: Engine | None = None
    progress: Progress | None = None
    memory_bytes: float | None = None

    def with_progress(self, progress: Progress) -> "Effort":
        """The same effort with a listener for its progress, unless it has one already."""
        return self if self.progress else replace(self, progress=progress)

    def over(self, usual: Settings) -> Settings:
        """The solver's settings: these values, and the usual ones where a value is None."""
        return replace(usual, **{name: value for name, value in vars(self).items() if value is not None})


USUAL = Effort()


@contextmanager
def shown(console: Console, maximise: bool = False) -> Iterator[Progress]:
    """Shows how an answer is coming along, for as long as it takes. `maximise`: scores have their sign turned."""
    with bar(console, "solving") as coming:
        yield lambda score, bound: coming.say(said(score, bound, maximise))


def said(score: float, bound: float, maximise: bool = False) -> str:
    """How far an answer has come."""
    if math.isinf(score):
        return "no answer yet"
    best, gap = -score if maximise else score, relative_gap(score, bound)
    return f"the best so far {best:.6g}, proven to {gap:.1e} of the best there is"
