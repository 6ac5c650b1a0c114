"""The quality that a time needs, and the combination of two timings of the same thing. This file knows no models and no
clocks."""

import math
from dataclasses import dataclass

from cost_models.timing.pair import Comparison


@dataclass(frozen=True)
class Quality:
    """The largest spread and CPU contention that a time may have, and the seconds that may be spent on timing again.

    `worst_spread` is a standard error as a share, `worst_contention` a share of the cores needed.
    """

    worst_spread: float = math.inf
    worst_contention: float = math.inf
    patience_s: float = 0.0

    def fault(self, spread: float, contention: float | None) -> str:
        """The faults of a time, in words; empty if there are none. Unknown contention is no fault."""
        faults = []
        if spread > self.worst_spread:
            faults.append(f"a spread of {spread:.1%}, at most {self.worst_spread:.1%} is allowed")
        if contention is not None and contention > self.worst_contention:
            faults.append(f"a CPU contention of {contention:.0%}, at most {self.worst_contention:.0%} is allowed")
        return " and ".join(faults)

    def of_both(self, earlier: Comparison, later: Comparison) -> Comparison:
        """Two timings of the same thing as one. If either has too much contention, only the one with less of it counts:
        contention causes errors that more rounds do not reduce."""
        if max(earlier.contention, later.contention) > self.worst_contention:
            return min(later, earlier, key=lambda timed: timed.contention)
        return earlier.and_then(later)


ANY = Quality()
"""Any time is used."""
