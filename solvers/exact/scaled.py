"""A program scaled so that rounding errors are comparable: the largest weight and the largest number of each row are 1.

Searches work on such programs. Their answers are checked on the numbers as given (`Program.holds`).

Legend of shape suffixes: O options, R rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solvers.exact.program import Program, scale_of
from solvers.exact.shortest_path import Line, Weights

ROUNDING = 1e-12
"""An upper bound on the rounding error of a sum of numbers up to 1, for each of its terms."""


@dataclass(frozen=True, eq=False)
class Scaled:
    """Weights and values, and `most_R`, what their sums may be. `scale` and `scale_R` are what they were divided by."""

    line: Line
    weights_O: Weights
    values_OR: Weights
    most_R: Weights
    scale: float
    scale_R: Weights

    @staticmethod
    def of(program: Program) -> "Scaled":
        scale = scale_of(program.weights)
        scale_R = np.array([max(scale_of(row.values), abs(row.most)) for row in program.rows])
        columns = [row.values / scale for row, scale in zip(program.rows, scale_R.tolist(), strict=True)]
        values_OR = np.stack(columns, axis=1) if columns else np.zeros((len(program.weights), 0))
        # A sum that passes a limit by its tolerance is within it.
        most_R = np.array([row.most + row.tolerance for row in program.rows]) / scale_R
        return Scaled(program.line, program.weights / scale, values_OR, most_R, scale, scale_R)

    def prices(self, prices_R: Sequence[float] | Weights) -> Weights:
        """Prices of the program's own units in this scale."""
        scaled_R: Weights = np.asarray(prices_R, dtype=np.float64) * self.scale_R / self.scale
        return scaled_R

    def charged(self, prices_R: Weights) -> Weights:
        """Each option's weight and the price of what it uses."""
        charged_O: Weights = self.weights_O + self.values_OR @ prices_R
        return charged_O

    def rounding(self, prices_R: Weights) -> float:
        """An upper bound on the rounding error of a tiling's charge."""
        return ROUNDING * self.line.slots * float(1 + np.abs(prices_R).sum())

    def bound(self, prices_R: Weights) -> float:
        """The bound that the prices prove on every tiling's weight."""
        return float(self.line.up_to(self.charged(prices_R))[-1] - prices_R @ self.most_R)


@dataclass(frozen=True, eq=False)
class Relaxation:
    """The Lagrangian relaxation of a program: `prices_R`, in the scale of `scaled`, are charged for what each sum uses,
    in place of the rows."""

    program: Program
    scaled: Scaled
    prices_R: Weights

    @staticmethod
    def of(program: Program, prices_R: Sequence[float] | Weights) -> "Relaxation":
        """By prices in the program's own units."""
        scaled = Scaled.of(program)
        return Relaxation(program, scaled, scaled.prices(prices_R))
