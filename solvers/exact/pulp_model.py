"""A program put to a MIP solver through PuLP: one binary per option, each slot covered once, sums under their limits.

The only file that imports PuLP, and the one place where tolerances meet: solvers work on scaled numbers, exact to about
1e-10; the answer is checked on the original numbers. `minimise.py` calls it for problems that it cannot solve itself.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import highspy
import numpy as np
import psutil  # type: ignore[import-untyped]
import pulp  # type: ignore[import-untyped]

from solvers.errors import RoundingError, SolverCrashError
from solvers.exact.highs import SMALLEST, TOLERANCE, IntegerProgram, let_it_greet
from solvers.exact.highs_process import solve_in_process
from solvers.exact.program import Answer, Program, Row, scale_of
from solvers.exact.settings import DEFAULT, Settings
from solvers.exact.shortest_path import Indices, Weights

_RETRIES = 100
_WIDEST = 1e8
_OPTION_BYTES, _NUMBER_BYTES = 700, 160
"""The bytes that PuLP takes for an option, and for each number in a row."""
_LOOK_S = 0.05
"""Seconds between two checks of CBC's memory."""


def run(program: Program, settings: Settings = DEFAULT) -> Answer:
    """The best tiling to the gap of the settings, or the best found in their time and memory.

    HiGHS reports its progress; CBC reports none. Ctrl-C ends either at once. Rows hold on the original numbers, and the
    bound allows for the solver's rounding. An answer that the solver accepts and our check rejects is excluded (a
    no-good cut). This is exact: unlike a tighter limit it excludes no feasible answer and leaves the bound valid.
    Raises RoundingError if this repeats too often. If the numbers of a row differ too much in size for the solver, an
    answer of "infeasible" is not trusted: the status is "timed out".
    """
    deadline = time.monotonic() + settings.time_limit_s
    wrong: list[tuple[int, ...]] = []
    while len(wrong) <= _RETRIES:
        answer = _run(program, wrong, settings, deadline)
        if answer.outcome == "infeasible" and any(map(_is_wide, program.rows)):
            return Answer("timed out")
        if answer.outcome != "solved" or program.holds(answer.chosen):
            return answer
        wrong.append(answer.chosen)
    raise RoundingError(
        f"{_RETRIES} choices meet all limits for {settings.engine}, but break one by rounding; use rounder limits"
    )


def _run(program: Program, wrong: Sequence[tuple[int, ...]], settings: Settings, deadline: float) -> Answer:
    """One run on scaled numbers. `wrong` are excluded choices."""
    left_bytes = settings.memory_bytes - _model_bytes(program, wrong)
    if left_bytes < 0:
        return Answer("out of memory")
    if settings.engine == "cbc":
        return _run_cbc(program, wrong, settings.gap, deadline, left_bytes)
    scale = scale_of(program.weights)

    def tell(best: float, bound: float) -> None:
        if settings.progress is not None:
            settings.progress(best * scale, bound * scale)

    rows, column_of = _rows(*_model(program, wrong))
    found = solve_in_process(rows, settings.gap, deadline, left_bytes, tell)
    if found.status == "infeasible":
        return Answer("infeasible")
    if found.values is None:
        return Answer("out of memory" if found.status == "out of memory" else "timed out")
    rounding = TOLERANCE * len(found.values)
    return Answer("solved", _chosen(program, found.values[column_of]), (found.bound - rounding) * scale)


def _rows(model: pulp.LpProblem, chosen_of: Sequence[pulp.LpVariable]) -> tuple[IntegerProgram, Indices]:
    """The model in the form that PuLP gives to HiGHS, and the columns of its variables, in PuLP's order."""
    let_it_greet()
    solver = pulp.HiGHS(msg=False, small_matrix_value=SMALLEST)
    solver.createAndConfigureSolver(model)
    solver.buildSolverModel(model)
    given = model.solverModel.getLp()
    matrix = given.a_matrix_
    assert matrix.format_ == highspy.MatrixFormat.kRowwise, "rows were added one by one"
    rows = IntegerProgram(
        np.array(given.col_cost_),
        np.array(given.row_lower_),
        np.array(given.row_upper_),
        np.array(matrix.start_, dtype=np.int32),
        np.array(matrix.index_, dtype=np.int32),
        np.array(matrix.value_),
    )
    return rows, np.array([variable.index for variable in chosen_of], dtype=np.intp)


def _run_cbc(
    program: Program, wrong: Sequence[tuple[int, ...]], gap: float, deadline: float, memory_bytes: float
) -> Answer:
    """CBC is a separate program. We end it on a signal to end, or when it uses too much memory."""
    model, chosen_of = _model(program, wrong)
    limit_s = None if np.isinf(deadline) else max(deadline - time.monotonic(), 0.0)
    solver = pulp.PULP_CBC_CMD(msg=False, gapRel=gap, gapAbs=0.0, timeLimit=limit_s, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        asked, told = f"{folder}/asked.mps", f"{folder}/told.sol"
        variables, names, rows, _ = model.writeMPS(asked, rename=1)
        options = [part for option in solver.getOptions() for part in f"-{option}".split()]
        limit = [] if limit_s is None else ["-sec", str(limit_s)]
        line = [solver.path, asked, *limit, *options, "-solve", "-printingOptions", "all", "-solution", told]
        with subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as cbc:
            try:
                is_full = not _ends_within(cbc, memory_bytes)
            finally:
                cbc.kill()
        if is_full:
            return Answer("out of memory")
        if cbc.returncode or not os.path.exists(told):
            raise SolverCrashError(f"{solver.path} ended with {cbc.returncode} and no answer")
        status, values, *_, sol_status = solver.readsol_MPS(told, model, variables, names, rows)
    model.assignVarsVals(values)
    model.assignStatus(status, sol_status)
    return _read_cbc(model, np.array([variable.value() or 0.0 for variable in chosen_of]), program, gap)


def _ends_within(running: "subprocess.Popen[bytes]", memory_bytes: float) -> bool:
    """Waits for its end; False if it uses more memory first."""
    seen = psutil.Process(running.pid)
    while True:
        try:
            running.wait(_LOOK_S)
            return True
        except subprocess.TimeoutExpired:
            with suppress(psutil.NoSuchProcess):
                if seen.memory_info().rss > memory_bytes:
                    return False


def _model_bytes(program: Program, wrong: Sequence[tuple[int, ...]]) -> int:
    """The bytes of PuLP's objects of a program, and of their copy as rows."""
    covered = int((program.line.ends - program.line.firsts).sum())
    numbers = covered + len(program.weights) * (1 + len(program.rows)) + sum(map(len, wrong))
    return _OPTION_BYTES * len(program.weights) + _NUMBER_BYTES * numbers


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


def _chosen(program: Program, values: Weights) -> tuple[int, ...]:
    """In slot order."""
    chosen = np.flatnonzero(np.round(values) == 1).tolist()
    return tuple(sorted(chosen, key=program.line.firsts.__getitem__))


def _read_cbc(model: Any, values: Weights, program: Program, gap: float) -> Answer:
    """CBC's answer, no proof if the time limit stops it; `sol_status`, not `status`, tells the two apart."""
    if model.status == pulp.LpStatusInfeasible:
        return Answer("infeasible")
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Answer("timed out")
    answer = Answer("solved", _chosen(program, values))
    if model.sol_status != pulp.LpSolutionOptimal:
        return answer
    weight = program.weight(answer.chosen)
    return replace(answer, bound=weight - gap * abs(weight))
