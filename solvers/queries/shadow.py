"""The worth of a looser limit: the slope of the linear relaxation's least weight where one limit is loosened.

Prices that prove the best bound need not be unique. At a corner of the least weight, every price between the slope on
the looser side and the slope on the tighter side proves it. If nothing fits a tighter limit, every price above the
looser slope does. So the slope on the looser side is the lowest price of a row among all the best prices of the rows
together. It is found by the same planes as the best bound (`lagrangian.py`): a row's price is taken down as far as the
planes let it, and the tiling that is best under these prices is the next plane, until it lets them be.

Legend of shape suffixes: O options, R rows, S slots and the end.
"""

import math
from dataclasses import dataclass, replace

import highspy
import numpy as np

from solvers.exact.highs import exact_highs
from solvers.exact.lagrangian import CuttingPlanes
from solvers.exact.memory import MEMORY_BYTES
from solvers.exact.program import Program, scale_of
from solvers.exact.scaled import ROUNDING, Scaled
from solvers.exact.shortest_path import Indices, Line, Weights

_TOLERANCE = 1e-9
"""Prices are among the best where their bound is below the best by no more, as a share of all that the limits cost."""
_ROUNDING = 1e-14
"""Sums of numbers up to 1 are off by less, for each of their terms; and what it buys is far below the tolerance."""
_ROUNDS = 400


@dataclass(frozen=True, eq=False)
class Shadow:
    """`prices_R`: by how much the relaxation's least weight falls, at first, for each unit that one row's limit rises
    and the others stay. `slack_O`: by how much, at least, the weight of what holds an option is above the bound."""

    prices_R: Weights
    slack_O: Weights


def shadow(program: Program, chosen: Indices, memory_bytes: float = MEMORY_BYTES) -> Shadow:
    """The shadow prices of a program's rows; `chosen` is a tiling within them.

    A limit that the tiling passes by its tolerance is where the tiling is. Every limit is loosened by the largest
    possible rounding error.
    """
    over_O = _over_best(program.line, program.weights)
    cost = float(over_O[chosen].sum())
    if cost <= ROUNDING * program.line.slots * scale_of(program.weights):
        cost = scale_of(over_O)  # The limits cost nothing: any scale will do.
    scaled = Scaled.of(program)
    taken_R = [max(row.most, math.fsum(row.values[chosen])) for row in program.rows]
    most_R = np.array(taken_R) / scaled.scale_R + _ROUNDING * program.line.slots
    scaled = replace(scaled, weights_O=over_O / cost, most_R=most_R, scale=cost)
    search = CuttingPlanes(scaled, memory_bytes, _TOLERANCE)
    search.ask(np.zeros(len(program.rows)))
    search.climb()
    lowest_R = np.array([_lowest(search, row) for row in range(len(program.rows))])
    return Shadow(lowest_R * scaled.scale / scaled.scale_R, search.found().slack_O)


def _over_best(line: Line, weights_O: Weights) -> Weights:
    """Other weights by which every tiling weighs as much less as the best of all weighs: those of the best are 0. So
    large weights that all tilings share do not hide what limits cost."""
    onward_S = line.onward(weights_O)
    onward_S[~np.isfinite(onward_S)] = 0.0
    over_O: Weights = weights_O + onward_S[line.ends] - onward_S[line.firsts]
    return over_O


def _lowest(search: CuttingPlanes, row: int) -> float:
    """The lowest price of a row at which, with some prices of the others, the bound is the best there is."""
    least = search.best - _TOLERANCE
    prices = _Prices(len(search.best_R), row)
    for plane in search.planes:
        prices.bound(*plane, least)
    last_R = np.full_like(search.best_R, np.nan)
    for _ in range(_ROUNDS):
        prices_R = prices.lowest()
        if np.array_equal(prices_R, last_R) or search.ask(prices_R) >= least - _TOLERANCE:
            break
        prices.bound(*search.planes[-1], least)
        last_R = prices_R
    return float(prices_R[row])


class _Prices:
    """Prices from 0 on at which planes are no lower than a bound, and the lowest of one row's: a small linear
    program."""

    def __init__(self, count: int, row: int):
        self._columns = np.arange(count, dtype=np.int32)
        self._highs = exact_highs()
        for _ in range(count):
            self._highs.addVar(0.0, highspy.kHighsInf)
        self._highs.changeColCost(row, 1.0)

    def bound(self, weight: float, used_R: Weights, least: float) -> None:
        """weight + used . prices >= least"""
        self._highs.addRow(least - weight, highspy.kHighsInf, len(used_R), self._columns, used_R)

    def lowest(self) -> Weights:
        self._highs.run()
        found: Weights = np.maximum(np.array(self._highs.getSolution().col_value), 0.0)
        return found
