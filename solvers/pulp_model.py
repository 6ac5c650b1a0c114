"""A program put to a MIP solver through PuLP: one binary per option, each slot covered once, sums under their limits.

The only file that imports PuLP, and the one place where tolerances meet: solvers work on scaled numbers and are right
to about 1e-10 of them, the answer is checked on the numbers as given. For what `minimise.py` cannot settle by itself.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import highspy
import numpy as np
import pulp  # type: ignore[import-untyped]

from solvers.highs import let_it_greet
from solvers.line import Weights
from solvers.program import Answer, Program, Progress, Row, scale_of

Engine = Literal["highs", "cbc"]

_HIGHS_TOLERANCE = 1e-10
"""The smallest HiGHS takes; it is absolute, and every row is scaled so that its largest number is 1."""

_RETRIES = 100
_WIDEST = 1e8


class IndistinctError(ValueError):
    """Sums that a solver cannot tell from their limit."""


def run(program: Program, gap: float, deadline: float, engine: Engine, progress: Progress | None = None) -> Answer:
    """The best tiling to a relative gap, or the best found by the deadline (`time.monotonic`).

    `progress` hears what HiGHS says of its own; CBC says nothing.

    Rows hold on the numbers as given, and the bound allows for what the solver rounds. What the solver finds right and
    we find wrong, it is told not to choose again: exact, and unlike a tighter limit it leaves every right answer, and
    the bound, as they are. Raises IndistinctError where that has no end. Where the numbers of a row are of sizes too
    different for the solver, its word that nothing is within is not taken: "timed out".
    """
    wrong: list[tuple[int, ...]] = []
    while len(wrong) <= _RETRIES:
        answer = _run(program, wrong, gap, max(deadline - time.monotonic(), 0.0), engine, progress)
        if answer.outcome == "infeasible" and any(map(_is_wide, program.rows)):
            return Answer("timed out")
        if answer.outcome != "solved" or program.holds(answer.chosen):
            return answer
        wrong.append(answer.chosen)
    raise IndistinctError(
        f"{_RETRIES} choices meet all limits for {engine}, yet pass one by rounding; use rounder limits"
    )


def _run(
    program: Program,
    wrong: Sequence[tuple[int, ...]],
    gap: float,
    left_s: float,
    engine: Engine,
    progress: Progress | None,
) -> Answer:
    """One run on scaled numbers. `wrong` are choices it may not make."""
    model, chosen_of = _model(program, wrong)
    limit_s = None if np.isinf(left_s) else left_s
    scale = scale_of(program.weights)
    if engine == "cbc":
        model.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=gap, gapAbs=0.0, timeLimit=limit_s, threads=1))
        return _read_cbc(model, chosen_of, program, gap)
    let_it_greet()

    told: list[tuple[float, float]] = []

    def tell(kind: object, message: str, found: Any, answer: object, data: object) -> None:
        """HiGHS asks thousands of times a second whether to go on: what it says then is passed on where it is new."""
        here = found.mip_primal_bound * scale, found.mip_dual_bound * scale
        if progress is not None and told[-1:] != [here]:
            told[:] = [here]
            progress(*here)

    model.solve(
        pulp.HiGHS(
            msg=False,
            callbackTuple=(tell, None),
            callbacksToActivate=[highspy.cb.HighsCallbackType.kCallbackMipInterrupt],
            gapRel=gap,
            gapAbs=0.0,
            timeLimit=limit_s,
            threads=1,
            mip_feasibility_tolerance=_HIGHS_TOLERANCE,
            primal_feasibility_tolerance=_HIGHS_TOLERANCE,
            dual_feasibility_tolerance=_HIGHS_TOLERANCE,
            small_matrix_value=1e-12,
        )
    )
    return _read_highs(model.solverModel, chosen_of, program, scale)


def _model(program: Program, wrong: Sequence[tuple[int, ...]]) -> tuple[pulp.LpProblem, list[pulp.LpVariable]]:
    model = pulp.LpProblem("tiling", pulp.LpMinimize)
    line = program.line
    chosen_of = [model.add_variable(f"x{i}", cat=pulp.LpBinary) for i in range(len(program.weights))]
    model += _sum(chosen_of, program.weights / scale_of(program.weights))
    covering: list[list[pulp.LpVariable]] = [[] for _ in range(line.slots)]
    for first, end, chosen in zip(line.firsts.tolist(), line.ends.tolist(), chosen_of, strict=True):
        for slot in range(first, end):
            covering[slot].append(chosen)
    for variables in covering:
        model += _sum(variables, np.ones(len(variables))) == 1
    for row in program.rows:
        scale = max(scale_of(row.values), abs(row.most))
        model += _sum(chosen_of, row.values / scale) <= (row.most + row.tolerance) / scale
    for choice in wrong:
        model += pulp.lpSum(chosen_of[i] for i in choice) <= len(choice) - 1
    return model, chosen_of


def _is_wide(row: Row) -> bool:
    sizes = np.abs(row.values[row.values != 0])
    return len(sizes) > 0 and float(sizes.max()) > _WIDEST * float(sizes.min())


def _sum(variables: Sequence[pulp.LpVariable], factors: Weights) -> pulp.LpAffineExpression:
    return pulp.LpAffineExpression(list(zip(variables, factors.tolist(), strict=True)))


def _chosen(program: Program, chosen_of: Sequence[pulp.LpVariable]) -> tuple[int, ...]:
    """In slot order."""
    chosen = [i for i, variable in enumerate(chosen_of) if round(variable.value() or 0) == 1]
    return tuple(sorted(chosen, key=program.line.firsts.__getitem__))


def _read_highs(highs: highspy.Highs, chosen_of: Sequence[pulp.LpVariable], program: Program, scale: float) -> Answer:
    """What HiGHS found. PuLP's own status calls a time-limited answer optimal, so HiGHS itself is asked."""
    status = highs.getModelStatus()
    info = highs.getInfo()
    has_answer = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    if status == highspy.HighsModelStatus.kInfeasible:
        return Answer("infeasible")
    if status == highspy.HighsModelStatus.kTimeLimit and not has_answer:
        return Answer("timed out")
    assert has_answer, f"HiGHS stopped with {highs.modelStatusToString(status)}"
    rounding = _HIGHS_TOLERANCE * len(chosen_of)
    return Answer("solved", _chosen(program, chosen_of), (info.mip_dual_bound - rounding) * scale)


def _read_cbc(model: Any, chosen_of: Sequence[pulp.LpVariable], program: Program, gap: float) -> Answer:
    """What CBC found. Stopped by the time it proves nothing; `sol_status`, not `status`, tells the two apart."""
    if model.status == pulp.LpStatusInfeasible:
        return Answer("infeasible")
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Answer("timed out")
    answer = Answer("solved", _chosen(program, chosen_of))
    if model.sol_status != pulp.LpSolutionOptimal:
        return answer
    weight = program.weight(answer.chosen)
    return replace(answer, bound=weight - gap * abs(weight))
