"""The integer program as numbers: tile the slots at the least total weight, with some sums under their limits.

A problem becomes a program once it is known what to minimise. This file does not know how a program is solved, nor
what the sums stand for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from solvers.exact.shortest_path import Indices, Line, Weights, costs_of, line_of
from solvers.problem import LIMIT_TOLERANCE, Constraint, Problem

Progress = Callable[[float, float], None]
"""A listener that gets, at every step, the weight of the best known tiling (infinite if there is none) and the proven
bound."""


@dataclass(frozen=True)
class Row:
    """A sum over the chosen options that may not pass `most`. A minimum is a row with its signs turned."""

    values: Weights
    most: float

    @property
    def tolerance(self) -> float:
        return LIMIT_TOLERANCE * abs(self.most)

    def holds(self, chosen: Sequence[int] | Indices) -> bool:
        """Whether the chosen options stay under the limit, summed as exactly as in the check of the answer."""
        return math.fsum(self.values[list(chosen)]) - self.most <= self.tolerance


@dataclass(frozen=True)
class Program:
    """Tile a line with options at the least total weight, under the rows. An option has one weight, and one value per
    row."""

    line: Line
    weights: Weights
    rows: tuple[Row, ...]

    @staticmethod
    def of(problem: Problem, weights: Weights, limits: Sequence[Constraint]) -> "Program":
        """A problem's slots and options under some of its limits, to minimise any one number per option."""
        rows = tuple(Row(limit.sign * costs_of(problem, limit.cost), limit.sign * limit.value) for limit in limits)
        return Program(line_of(problem), weights, rows)

    def only(self, kept: Indices) -> "Program":
        """The same program on some of its options."""
        rows = tuple(Row(row.values[kept], row.most) for row in self.rows)
        return Program(self.line.only(kept), self.weights[kept], rows)

    def holds(self, chosen: Sequence[int] | Indices) -> bool:
        """Whether every row holds."""
        return all(row.holds(chosen) for row in self.rows)

    def weight(self, chosen: Sequence[int] | Indices) -> float:
        """The total weight of some options, correctly rounded."""
        return math.fsum(self.weights[list(chosen)])


@dataclass(frozen=True)
class Answer:
    """`chosen` are indices into the options, in slot order, empty unless solved; `bound` is proven.

    "solved" means that `chosen` is feasible, not that it is the best: the bound shows that. `prices` are the prices of
    the bound's proof, one per unit of each row: the largest fall of the least weight when the row's limit rises by one.
    """

    outcome: Literal["solved", "infeasible", "timed out", "out of memory"]
    chosen: tuple[int, ...] = ()
    bound: float = -math.inf
    prices: tuple[float, ...] = ()


def scale_of(values: Weights) -> float:
    """The largest magnitude; 1 where all are 0."""
    return float(np.max(np.abs(values), initial=0.0)) or 1.0
