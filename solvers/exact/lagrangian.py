"""The price of a unit of each limit, and the bound that it proves: the Lagrangian dual of the tiling program.

Each limit is replaced by a price per unit of its sum. The best tiling is then a shortest path. Its charged weight less
the prices of the limits is a bound on every tiling within the limits, for any prices. Cutting planes (Kelley, 1960)
find the best prices; each query lies between the best known prices and those of the planes (in-out separation:
Ben-Ameur and Neto, 2007). Since a line of slots is integral, the bound is that of the linear relaxation.

Legend of shape suffixes: O options, R rows.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np

from solvers.exact.highs import exact_highs
from solvers.exact.memory import MEMORY_BYTES
from solvers.exact.program import Program
from solvers.exact.scaled import Scaled
from solvers.exact.shortest_path import Indices, Weights

_TOLERANCE = 1e-7
_ROUNDS = 400
_TOWARDS_BEST = 0.6
_CEILING, _HIGHEST_CEILING = 1e4, 1e10
_ROUNDING = 4e-16
_SEEN_SHARE = 0.05
"""The share of the memory for tilings that the search meets."""


@dataclass(frozen=True, eq=False)
class Dual:
    """`bound` is at most the weight of every tiling within the rows, proven by `prices_R`, one per unit of each row.

    `slack_O` is the rise of the bound for tilings that hold an option; it is 0 for options of the best path. `seen` are
    tilings that the search met, within the rows or not, the latest last.
    """

    bound: float
    prices_R: Weights
    slack_O: Weights
    seen: tuple[Indices, ...]


def dual(program: Program, start_R: Sequence[float] | None = None, memory_bytes: float = MEMORY_BYTES) -> Dual:
    """The best Lagrangian bound, to rounding. `start_R` are prices that may be near the best. If even the linear
    relaxation is infeasible, the bound grows beyond any tiling's weight. The latest tilings that the search meets are
    kept, as many as memory allows.
    """
    search = CuttingPlanes(Scaled.of(program), memory_bytes)
    search.ask(np.zeros(len(program.rows)) if start_R is None else search.scaled(start_R))
    search.climb()
    return search.found()


class CuttingPlanes:
    """The best prices so far for a scaled program, and the planes from all queries: a tiling's weight, and its excess
    over each row."""

    def __init__(self, scaled: Scaled, memory_bytes: float, tolerance: float = _TOLERANCE):
        self._scaled = scaled
        self._tolerance = tolerance
        self.best, self.best_R = -np.inf, np.zeros(len(scaled.most_R))
        self.planes: list[tuple[float, Weights]] = []
        kept = max(1, int(_SEEN_SHARE * memory_bytes / (8 * scaled.line.slots)))
        self._seen: deque[Indices] = deque(maxlen=kept)

    def scaled(self, prices_R: Sequence[float]) -> Weights:
        return self._scaled.prices(prices_R)

    def ask(self, prices_R: Weights) -> float:
        """The bound by these prices. Adds the plane of the best tiling under them."""
        scaled = self._scaled
        charged_O = scaled.charged(prices_R)
        chosen = scaled.line.least(charged_O)
        largest = float(np.abs(charged_O[chosen]).max() + np.abs(prices_R * scaled.most_R).sum())
        rounding = _ROUNDING * scaled.line.slots * largest
        bound = float(charged_O[chosen].sum() - prices_R @ scaled.most_R) - rounding
        self.planes.append((float(scaled.weights_O[chosen].sum()), scaled.values_OR[chosen].sum(0) - scaled.most_R))
        self._seen.append(chosen)
        if bound > self.best:
            self.best, self.best_R = bound, prices_R
        return bound

    def climb(self) -> None:
        """Query until the best prices are found, to the tolerance."""
        ceiling = _CEILING
        while len(self.best_R):
            self._climb(ceiling)
            if ceiling >= _HIGHEST_CEILING or not np.any(self.best_R >= 0.5 * ceiling):
                return
            ceiling *= 1e3

    def _climb(self, ceiling: float) -> None:
        """Query until no prices up to the ceiling can be better by more than the tolerance, or the highest point of the
        planes does not move any more: the differences are then below the precision of the linear program."""
        planes = _Planes(len(self.best_R), ceiling)
        for cut in self.planes:
            planes.add(*cut)
        last_R = np.full_like(self.best_R, np.nan)
        for _ in range(_ROUNDS):
            most, prices_R = planes.highest()
            near = self._tolerance * max(abs(most), abs(self.best))
            if most - self.best <= near or np.array_equal(prices_R, last_R):
                return
            between_R = _TOWARDS_BEST * self.best_R + (1 - _TOWARDS_BEST) * prices_R
            self.ask(between_R)
            planes.add(*self.planes[-1])
            if planes.height(self.planes[-1], prices_R) >= most - near:
                # The plane hardly lowers the highest point, so the next query is at that point.
                self.ask(prices_R)
                planes.add(*self.planes[-1])
            last_R = prices_R

    def found(self) -> Dual:
        scaled = self._scaled
        charged_O = scaled.charged(self.best_R)
        slack_O = scaled.line.through(charged_O) - scaled.line.up_to(charged_O)[-1]
        prices_R = self.best_R * scaled.scale / scaled.scale_R
        return Dual(self.best * scaled.scale, prices_R, slack_O * scaled.scale, tuple(self._seen))


class _Planes:
    """The minimum of some planes over prices from 0 to a ceiling, and its highest point, by a small linear program."""

    def __init__(self, prices: int, ceiling: float):
        self._prices = prices
        self._highs = exact_highs()
        self._highs.addVar(-highspy.kHighsInf, highspy.kHighsInf)
        self._highs.changeColCost(0, -1.0)
        for _ in range(prices):
            self._highs.addVar(0.0, ceiling)

    def add(self, weight: float, used_R: Weights) -> None:
        """height <= weight + used . prices"""
        columns = np.arange(self._prices + 1, dtype=np.int32)
        self._highs.addRow(-highspy.kHighsInf, weight, len(columns), columns, np.concatenate([[1.0], -used_R]))

    @staticmethod
    def height(cut: tuple[float, Weights], prices_R: Weights) -> float:
        return float(cut[0] + cut[1] @ prices_R)

    def highest(self) -> tuple[float, Weights]:
        """The height there, and the prices."""
        self._highs.run()
        found = np.array(self._highs.getSolution().col_value)
        return float(found[0]), np.maximum(found[1:], 0.0)
