"""The least weight of any tiling within the limits, exact, and fast where a line of slots makes that easy.

Prices of the limits bound every tiling (`lagrangian.py`). The rise of this bound rules out most options: no tiling
better than the best known holds them (reduced-cost fixing). The search for prices also finds the first tilings, and
exchanges improve them (`local_search.py`). Then the solver finds all tilings near the bound, farther from it each
time (`meet_in_the_middle.py`), until they prove the required gap. If they become too many first, a MIP solver
(`pulp_model.py`) gets the remaining options. This file does not know what the weights and sums stand for.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from solvers.errors import RoundingError
from solvers.exact.labels import Labels
from solvers.exact.lagrangian import Dual, dual
from solvers.exact.local_search import improved
from solvers.exact.meet_in_the_middle import MergedError, meet
from solvers.exact.memory import CrowdedError
from solvers.exact.program import Answer, Program, scale_of
from solvers.exact.pulp_model import run
from solvers.exact.scaled import Relaxation, Scaled
from solvers.exact.search_width import reach, reach_bytes
from solvers.exact.settings import DEFAULT, Settings
from solvers.exact.shortest_path import Indices, Weights
from solvers.problem import relative_gap

_FIRST, _MORE, _LAST = 16e3, 4.0, 1e14
"""The number of partial tilings, as counted beforehand: the first one, the factor for each next one, and the largest
one."""
_FIRST_SHARE = 0.05
"""The share of the memory for the first search."""
_NEARLY_CROWDED = 0.8
_FURTHER = 2.0
"""The search goes this far beyond the distance within which it is complete, because a better known tiling rules out
more options."""
_TRIED, _TRIED_MOST, _POOR = 2, 8, 0.005
"""Tilings that exchanges begin with, and how many where what they make of those is farther than this from the bound."""
_BESIDE = 300
"""The number of options, beyond one per slot, that exchanges choose from."""
_ROUNDING = 1e-13
_BLURRED = 1e3
"""Options with weights larger than the useful ones by this factor are left out first, because they would lose
precision."""
_NEARLY = 0.999
"""The share of the required gap that the search aims at, so that the proof holds after rounding."""


@dataclass(frozen=True)
class Start:
    """A warm start from a program that differs in its limits: prices of its rows, and tilings, feasible or not."""

    prices: Sequence[float] | None = None
    tilings: Sequence[Sequence[int]] = ()


_COLD = Start()


def minimise(program: Program, settings: Settings = DEFAULT, start: Start = _COLD) -> Answer:
    """The best tiling to the gap of the settings, or the best found in their time and memory, which is what is held
    beside the program. Rows hold as given, to `LIMIT_TOLERANCE`.

    If time or memory ran out, a "solved" answer shows it by its bound.
    """
    deadline = time.monotonic() + settings.time_limit_s
    if any(
        _least(program, row.values) > row.most + row.tolerance + _rounding(program, row.values) for row in program.rows
    ):
        return Answer("infeasible")
    kept = _possible(program)
    if not np.isfinite(_least(program.only(kept), np.zeros(len(kept)))):
        return Answer("infeasible")
    return _minimise_only(kept, program, settings, deadline, start)


def _minimise_only(kept: Indices, program: Program, settings: Settings, deadline: float, start: Start) -> Answer:
    """The best tiling of some of the options."""
    place = {option: index for index, option in enumerate(kept.tolist())}
    tilings = [[place[one] for one in tiling] for tiling in start.tilings if place.keys() >= set(tiling)]
    known = Start(start.prices, tilings)
    answer = _minimise(program.only(kept), settings, deadline, known)
    return replace(answer, chosen=tuple(kept[list(answer.chosen)].tolist()))


def _minimise(program: Program, settings: Settings, deadline: float, start: Start) -> Answer:
    search = _Incumbent(program, dual(program, start.prices, settings.memory_bytes), settings, deadline)
    if search.bound > -_least(program, -program.weights) + search.rounding:
        return Answer("infeasible", bound=search.bound)
    search.try_tilings(start.tilings)
    worthy = search.worthy()
    if scale_of(program.weights[worthy]) * _BLURRED < scale_of(program.weights):
        known = search.answer().chosen
        return _minimise_only(worthy, program, settings, deadline, Start(tilings=[known] if known else ()))
    # They are counted at the slot with the fewest, and every slot may have that number.
    first = _FIRST_SHARE * settings.memory_bytes / Labels.bytes_of(program.line.slots, len(program.rows))
    most = labels = min(_FIRST, first)
    crowd = math.inf
    while not search.is_settled and not search.is_over and labels < min(_LAST, _NEARLY_CROWDED * crowd):
        if search.meet(labels):
            most, labels = labels, min(_MORE * labels, math.sqrt(labels * crowd))
        else:
            crowd, labels = labels, math.sqrt(most * labels)
    while not search.is_settled and not search.is_over:
        before = search.open_options
        search.ask()
        if search.open_options >= before:
            break
    return search.answer()


class _Incumbent:
    """The best tiling known so far and what is proven, of one program."""

    def __init__(self, program: Program, found: Dual, settings: Settings, deadline: float):
        self._program = program
        self._dual = found
        self._settings, self._deadline = settings, deadline
        self._best: Indices | None = None
        self.weight = math.inf
        """The weight of the best tiling; infinite if there is none yet."""
        self._is_infeasible = False
        self._is_out_of_memory = False
        self.bound = found.bound
        self.rounding = _rounding(program, program.weights)

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._deadline

    @property
    def _wanted(self) -> float:
        """The weight below which a tiling is worth finding."""
        return self.weight - _NEARLY * self._settings.gap * abs(self.weight) if self._best is not None else math.inf

    @property
    def is_settled(self) -> bool:
        if self._is_infeasible:
            return True
        return self._best is not None and relative_gap(self.weight, self.bound) <= max(self._settings.gap, 1e-12)

    def answer(self) -> Answer:
        prices = tuple(self._dual.prices_R.tolist())
        if self._best is None:
            why: Literal["out of memory", "timed out"] = "out of memory" if self._is_out_of_memory else "timed out"
            return Answer("infeasible" if self._is_infeasible else why, bound=self.bound, prices=prices)
        return Answer("solved", tuple(self._best.tolist()), self.bound, prices)

    def try_tilings(self, given: Sequence[Sequence[int]]) -> None:
        """The given tilings, those that the dual met, and the results of exchanges in the best of them."""
        met = [np.asarray(tiling, dtype=np.intp) for tiling in given] + list(self._dual.seen)
        for tiling in met:
            self._keep(tiling)
        scaled = Scaled.of(self._program)
        charged_O = scaled.charged(scaled.prices(self._dual.prices_R))
        tried = sorted(met, key=lambda tiling: charged_O[tiling].sum())[:_TRIED_MOST]
        near = np.unique(np.concatenate([self._nearest(self._program.line.slots + _BESIDE), *tried]))
        some = self._program.only(near)
        for count, tiling in enumerate(tried):
            if count >= _TRIED and relative_gap(self.weight, self.bound) < _POOR:
                break
            better = improved(some, scaled.values_OR[near], scaled.most_R, np.searchsorted(near, tiling))
            if better is not None:
                self._keep(near[better])
        self._tell()

    def _nearest(self, count: int) -> Indices:
        """The options that raise the bound least. Ties are broken in favour of every step: if the objective is also the
        limited cost, all options tie."""
        steps, slack_O = self._program.line.steps, self._dual.slack_O
        rank_O = np.empty_like(steps.order)
        rank_O[steps.order] = np.arange(len(rank_O)) - steps.starts[steps.of_option[steps.order]]
        return np.lexsort((rank_O, np.round(slack_O / scale_of(self._program.weights), 9)))[:count]

    def meet(self, labels: float) -> bool:
        """The tilings near the bound, as far as so many labels go; False where they cannot be held."""
        memory_bytes = self._settings.memory_bytes
        if reach_bytes(self._program.line) > memory_bytes:
            return False
        kept = self._open()
        if not len(kept):
            self._settle()
            return True
        some = self._program.only(kept)
        relaxation = Relaxation.of(some, self._dual.prices_R)
        scaled, prices_R = relaxation.scaled, relaxation.prices_R
        bound, wanted = scaled.bound(prices_R), self._wanted
        if wanted == math.inf:
            wanted = -_least(some, -some.weights) + self.rounding
        distance = max(wanted / scaled.scale - bound, scaled.rounding(prices_R))
        near = reach(scaled.line, scaled.charged(prices_R), distance, labels)
        if near <= 0:
            return True
        further = min(_FURTHER * near, distance)
        for merging in (True, False):
            try:
                for tiling in meet(relaxation, near, further, merging, memory_bytes):
                    if tiling is not None:
                        self._keep(kept[tiling])
                        self._tell()
                    if self.is_settled or self.is_over:
                        return True
                break
            except MergedError:
                continue
            except CrowdedError:
                return False
        is_all = near >= distance
        self._is_infeasible = is_all and self._best is None
        proven = wanted if is_all else (bound + near) * scaled.scale
        self.bound = max(self.bound, min(proven, self.weight))
        self._tell()
        return True

    def ask(self) -> None:
        """A MIP solver, with the options that a better tiling may hold."""
        kept = self._open()
        if not len(kept):
            self._settle()
            return
        wanted = self._wanted
        try:
            some = self._program.only(kept)
            found = run(some, replace(self._settings.until(self._deadline), progress=self._hear))
        except RoundingError:
            if self._best is None:
                raise
            return
        self._is_out_of_memory = found.outcome == "out of memory"
        if found.outcome == "infeasible":
            self._is_infeasible = self._best is None
            self.bound = max(self.bound, min(wanted, self.weight))
        elif found.outcome == "solved":
            self._keep(kept[list(found.chosen)])
            self.bound = max(self.bound, min(found.bound, wanted, self.weight))
        self._tell()

    @property
    def open_options(self) -> int:
        """The number of options that a better tiling may hold. It falls as the best known tiling improves."""
        return len(self._open())

    def worthy(self) -> Indices:
        """The options that a better tiling may hold if limits are ignored."""
        through_O = self._program.line.through(self._program.weights)
        sizes_O = np.abs(through_O) + np.abs(self._program.weights)
        # An option in no tiling has infinite weight, as has the best tiling if none is known.
        return np.flatnonzero(np.isfinite(through_O) & (through_O <= self.weight + 1e-9 * sizes_O))

    def _open(self) -> Indices:
        """The options that a tiling lighter than wanted may hold; none where they do not tile the slots."""
        kept = np.flatnonzero(self._dual.slack_O < self._wanted - self._dual.bound + self.rounding)
        line = self._program.line.only(kept)
        return kept if np.isfinite(line.up_to(np.zeros(len(kept)))[-1]) else kept[:0]

    def _settle(self) -> None:
        """Nothing lighter than wanted is left."""
        self.bound = max(self.bound, min(self._wanted, self.weight))
        self._is_infeasible = self._best is None
        self._tell()

    def _keep(self, tiling: Indices) -> None:
        weight = self._program.weight(tiling)
        if weight < self.weight and self._program.holds(tiling):
            self._best, self.weight = tiling, weight

    def _tell(self) -> None:
        if self._settings.progress is not None:
            self._settings.progress(self.weight, self.bound)

    def _hear(self, weight: float, bound: float) -> None:
        """Pass on the progress of a MIP solver on the options that it got. It knows only its own tilings."""
        if self._settings.progress is not None:
            known = max(self.bound, min(bound, self._wanted))
            self._settings.progress(max(min(weight, self.weight), known), known)


def _possible(program: Program) -> Indices:
    """The options that can be in a tiling within any single row. Impossible options may have numbers of any size, which
    would cost precision."""
    possible = np.isfinite(program.line.through(np.zeros(len(program.weights))))
    for row in program.rows:
        most = row.most + row.tolerance + _rounding(program, row.values)
        possible &= program.line.through(row.values) <= most
    return np.flatnonzero(possible)


def _least(program: Program, values: Weights) -> float:
    """The least sum of any tiling."""
    return float(program.line.up_to(values)[-1])


def _rounding(program: Program, values: Weights) -> float:
    """An upper bound on the rounding error of the sum over a tiling."""
    return _ROUNDING * program.line.slots * scale_of(values)
