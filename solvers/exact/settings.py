"""The settings of one run of the exact solver: the required quality, and the time and memory that it may use.

This file does not know how a program is solved.
"""

import math
import time
from dataclasses import dataclass, replace
from typing import Literal

from solvers.exact.memory import MEMORY_BYTES
from solvers.exact.program import Progress
from solvers.problem import OPTIMAL_GAP

Engine = Literal["highs", "cbc"]
"""The MIP solver that takes over if the exact solver needs too much memory."""


@dataclass(frozen=True)
class Settings:
    """`gap`: how far the answer may be from the best, as a share of its score. `time_limit_s`: infinite for no limit.
    `memory_bytes`: the most that the run holds beside the problem. `progress` gets the best known score and the proven
    bound at each step.
    """

    gap: float = OPTIMAL_GAP
    time_limit_s: float = math.inf
    engine: Engine = "highs"
    memory_bytes: float = MEMORY_BYTES
    progress: Progress | None = None

    def until(self, deadline: float) -> "Settings":
        """The same, but over by the deadline (`time.monotonic`)."""
        return replace(self, time_limit_s=max(0.0, min(self.time_limit_s, deadline - time.monotonic())))


DEFAULT = Settings()
