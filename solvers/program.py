"""The integer program: one binary per option, each slot covered once, sums under their limits; PuLP over HiGHS.

The only file that imports PuLP, and the one place where tolerances meet: HiGHS works on scaled numbers and is right to
about 1e-10 of them, the answer is checked on the numbers as given. This file does not know what the sums stand for, nor
what to tell the user where there is no answer.
"""

import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import highspy
import numpy as np
import pulp  # type: ignore[import-untyped]
from numpy.typing import NDArray

from solvers.line import Line, Weights, costs_of
from solvers.problem import LIMIT_TOLERANCE, Limit, Option, Problem, relative_gap
from solvers.reduce import keep

_HIGHS_TOLERANCE = 1e-10
"""The smallest HiGHS takes; it is absolute, and every row is scaled so that its largest number is 1."""

_RETRIES = 100


@dataclass(frozen=True)
class Row:
    """A sum over the chosen options that may not pass `most`. A minimum is a row with its signs turned."""

    values: Weights
    most: float

    @property
    def tolerance(self) -> float:
        return LIMIT_TOLERANCE * abs(self.most)

    def excess(self, chosen: Sequence[int]) -> float:
        """By how much the chosen options pass the limit; negative where they stay under it."""
        return math.fsum(self.values[list(chosen)]) - self.most

    def holds(self, chosen: Sequence[int]) -> bool:
        return self.excess(chosen) <= self.tolerance


@dataclass(frozen=True)
class Answer:
    """`chosen` are indices into the options, empty unless solved; `bound` is proven, on the weights given.

    "solved" says that `chosen` is right, not that it is best: that is for the bound to say.
    """

    outcome: Literal["solved", "infeasible", "timed out"]
    chosen: tuple[int, ...] = ()
    bound: float = -math.inf


@dataclass(frozen=True)
class Program:
    """Tile `slots` slots with options at the least total weight, under the rows."""

    slots: int
    options: tuple[Option, ...]
    weights: Weights
    rows: tuple[Row, ...]

    @staticmethod
    def of(problem: Problem, weights: Weights, limits: Sequence[Limit]) -> "Program":
        """A problem's slots and options under some of its limits, to minimise any one number per option."""
        rows = tuple(Row(limit.sign * costs_of(problem, limit.cost), limit.sign * limit.value) for limit in limits)
        return Program(problem.slots, problem.options, weights, rows)

    def only(self, kept: NDArray[np.intp]) -> "Program":
        """The same program on some of its options."""
        rows = tuple(Row(row.values[kept], row.most) for row in self.rows)
        return Program(self.slots, tuple(self.options[i] for i in kept), self.weights[kept], rows)


def minimise(program: Program, gap: float, time_limit_s: float | None) -> Answer:
    """The best tiling to a relative gap, or the best found in the time. Rows hold as given, to `LIMIT_TOLERANCE`."""
    deadline = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
    line = Line(program.slots, program.options)
    kept = keep(line, program.weights, [(row.values, row.most + row.tolerance) for row in program.rows])
    answer = _right(program, kept, gap, deadline)
    if answer.outcome != "solved":
        return answer
    weight = math.fsum(program.weights[list(answer.chosen)])
    if relative_gap(weight, answer.bound) > gap and time.monotonic() < deadline:
        # HiGHS is right to a share of the largest weight, which one terrible option makes coarse. No tiling better than
        # the one found has such an option; without them the numbers are of one size.
        rounding = 1e-12 * program.slots * _scale(program.weights[list(answer.chosen)])
        fewer = kept[line.through(program.weights)[kept] <= weight + rounding]
        if _scale(program.weights[fewer]) < _scale(program.weights[kept]):
            again = _right(program, fewer, gap, deadline)
            if again.outcome == "solved" and math.fsum(program.weights[list(again.chosen)]) <= weight:
                return replace(again, bound=max(again.bound, answer.bound))
    return answer


def _right(program: Program, kept: NDArray[np.intp], gap: float, deadline: float) -> Answer:
    """The answer on some of the options, with rows that hold on the numbers as given.

    What HiGHS finds right and we find wrong, it is told not to choose again: exact, and unlike a tighter limit it
    leaves every right answer, and the bound, as they are. Raises ArithmeticError where that has no end.
    """
    small = program.only(kept)
    wrong: list[tuple[int, ...]] = []
    while len(wrong) <= _RETRIES:
        answer = _run(small, wrong, gap, deadline - time.monotonic())
        if answer.outcome != "solved" or all(row.holds(answer.chosen) for row in small.rows):
            return replace(answer, chosen=tuple(kept[list(answer.chosen)].tolist()))
        wrong.append(answer.chosen)
    raise ArithmeticError(f"{_RETRIES} choices meet all limits for HiGHS, yet pass one by rounding; use rounder limits")


def _run(program: Program, wrong: Sequence[tuple[int, ...]], gap: float, left_s: float) -> Answer:
    """One run of HiGHS on scaled numbers. `wrong` are choices it may not make."""
    _let_it_greet()
    model, chosen_of = _model(program, wrong)
    model.solve(
        pulp.HiGHS(
            msg=False,
            gapRel=gap,
            gapAbs=0.0,
            timeLimit=max(left_s, 0.0),
            mip_feasibility_tolerance=_HIGHS_TOLERANCE,
            primal_feasibility_tolerance=_HIGHS_TOLERANCE,
            dual_feasibility_tolerance=_HIGHS_TOLERANCE,
            small_matrix_value=1e-12,
        )
    )
    return _read(model.solverModel, chosen_of, _scale(program.weights))


@cache
def _let_it_greet() -> None:
    """HiGHS 1.16 prints its name when a process makes its first solver, on standard output and whatever its options
    say. That output is our caller's, and may be JSON: the greeting goes nowhere."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            highspy.Highs()  # type: ignore[no-untyped-call]
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _model(program: Program, wrong: Sequence[tuple[int, ...]]) -> tuple[pulp.LpProblem, list[pulp.LpVariable]]:
    model = pulp.LpProblem("tiling", pulp.LpMinimize)
    chosen_of = [model.add_variable(f"x{i}", cat=pulp.LpBinary) for i in range(len(program.options))]
    model += _sum(chosen_of, program.weights / _scale(program.weights))
    covering: list[list[pulp.LpVariable]] = [[] for _ in range(program.slots)]
    for option, chosen in zip(program.options, chosen_of, strict=True):
        for slot in range(option.first, option.end):
            covering[slot].append(chosen)
    for variables in covering:
        model += _sum(variables, np.ones(len(variables))) == 1
    for row in program.rows:
        scale = max(_scale(row.values), abs(row.most))
        # Half the tolerance is ours, so that a sum that is over by rounding alone is within it; half is HiGHS's.
        model += _sum(chosen_of, row.values / scale) <= (row.most + row.tolerance / 2) / scale
    for choice in wrong:
        model += pulp.lpSum(chosen_of[i] for i in choice) <= len(choice) - 1
    return model, chosen_of


def _sum(variables: Sequence[pulp.LpVariable], factors: Weights) -> pulp.LpAffineExpression:
    return pulp.LpAffineExpression(list(zip(variables, factors.tolist(), strict=True)))


def _scale(values: Weights) -> float:
    return float(np.max(np.abs(values), initial=0.0)) or 1.0


def _read(highs: highspy.Highs, chosen_of: Sequence[pulp.LpVariable], scale: float) -> Answer:
    """What HiGHS found. PuLP's own status calls a time-limited answer optimal, so HiGHS itself is asked."""
    status = highs.getModelStatus()
    info = highs.getInfo()
    has_answer = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    if status == highspy.HighsModelStatus.kInfeasible:
        return Answer("infeasible")
    if status == highspy.HighsModelStatus.kTimeLimit and not has_answer:
        return Answer("timed out")
    assert has_answer, f"HiGHS stopped with {highs.modelStatusToString(status)}"
    chosen = tuple(i for i, variable in enumerate(chosen_of) if round(variable.value()) == 1)
    return Answer("solved", chosen, info.mip_dual_bound * scale)
