"""HiGHS for an integer program given as arrays, without its banner, which would mix with the caller's output. This file
does not know the meaning of the program, nor the process that it runs in (`highs_process.py`).
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import highspy
import numpy as np
import psutil  # type: ignore[import-untyped]
from numpy.typing import NDArray

TOLERANCE = 1e-10
"""The smallest tolerance that HiGHS accepts. It is absolute, and every row is scaled so that its largest number is
1."""
SMALLEST = 1e-12
"""Smaller numbers in a row count as 0."""

_LOOK_S = 0.05
"""Seconds between two checks of the memory."""
_SHARE = 0.8
"""The share of the memory at which it stops. It is below 1, because the check runs only now and then."""

Tell = Callable[[float, float], None]
"""A listener for the best known value and the proven bound, called if either is new."""


@dataclass(frozen=True, eq=False)
class IntegerProgram:
    """An integer program to minimise. It has one cost per column; columns are 0 or 1. Rows lie between `low` and
    `high`; their numbers are stored one after the other, those of row i from `starts[i]` on."""

    cost: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    starts: NDArray[np.int32]
    columns: NDArray[np.int32]
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Found:
    """The result of HiGHS. `values`, one per column, are None if it knows no answer. "optimal" to the gap asked for;
    `bound` is proven in any case."""

    status: Literal["optimal", "infeasible", "timed out", "out of memory"]
    values: NDArray[np.float64] | None = None
    bound: float = -float("inf")


def quiet_highs() -> highspy.Highs:
    """A new HiGHS of one thread that prints nothing."""
    let_it_greet()
    highs = highspy.Highs()  # type: ignore[no-untyped-call]
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    return highs


def exact_highs() -> highspy.Highs:
    """A HiGHS for a small linear program, whose answer is used to the last digit: no presolve, the finest
    tolerances."""
    highs = quiet_highs()
    highs.setOptionValue("presolve", "off")
    highs.setOptionValue("primal_feasibility_tolerance", TOLERANCE)
    highs.setOptionValue("dual_feasibility_tolerance", TOLERANCE)
    return highs


@cache
def let_it_greet() -> None:
    """HiGHS 1.16 prints a banner on standard output when a process makes its first solver, whatever its options say.
    That output may be JSON, so the banner is discarded."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            highspy.Highs()  # type: ignore[no-untyped-call]
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def solve_program(
    rows: IntegerProgram, gap: float, limit_s: float, tell: Tell | None = None, memory_bytes: float | None = None
) -> Found:
    """The minimum of an integer program to a relative gap, or the best found in the time and the memory. Ctrl-C takes
    effect when it ends. Without `tell` and `memory_bytes` no Python code runs before that.
    """
    highs = quiet_highs()
    for name, value in {
        "mip_rel_gap": gap,
        "mip_abs_gap": 0.0,
        "mip_feasibility_tolerance": TOLERANCE,
        "primal_feasibility_tolerance": TOLERANCE,
        "dual_feasibility_tolerance": TOLERANCE,
        "small_matrix_value": SMALLEST,
    }.items():
        highs.setOptionValue(name, value)
    if np.isfinite(limit_s):
        highs.setOptionValue("time_limit", max(limit_s, 0.0))
    highs.passModel(_model(rows))
    watch = _MipCallback(tell, memory_bytes)
    if tell is not None or memory_bytes is not None:
        highs.setCallback(watch, None)
        highs.startCallback(highspy.cb.HighsCallbackType.kCallbackMipInterrupt)
    highs.run()
    return _found(highs, watch.is_full)


class _MipCallback:
    """HiGHS calls this thousands of times a second. It passes new values on, and stops HiGHS if the memory is too
    large."""

    def __init__(self, tell: Tell | None, memory_bytes: float | None):
        self._tell = tell
        self._process = psutil.Process()
        self._most_bytes = None if memory_bytes is None else self._process.memory_info().rss + _SHARE * memory_bytes
        self._told: tuple[float, float] | None = None
        self._looked = time.monotonic()
        self.is_full = False

    def __call__(self, kind: object, message: str, found: Any, answer: Any, data: object) -> None:
        here = found.mip_primal_bound, found.mip_dual_bound
        if self._tell is not None and self._told != here:
            self._told = here
            self._tell(*here)
        if self._most_bytes is None or time.monotonic() < self._looked + _LOOK_S:
            return
        self._looked = time.monotonic()
        if self._process.memory_info().rss > self._most_bytes:
            self.is_full = True
            answer.user_interrupt = True


def _model(rows: IntegerProgram) -> highspy.HighsLp:
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(rows.cost), len(rows.low)
    model.col_cost_ = rows.cost
    model.col_lower_, model.col_upper_ = np.zeros(len(rows.cost)), np.ones(len(rows.cost))
    model.integrality_ = [highspy.HighsVarType.kInteger] * len(rows.cost)
    model.row_lower_, model.row_upper_ = rows.low, rows.high
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.num_col_, model.a_matrix_.num_row_ = len(rows.cost), len(rows.low)
    model.a_matrix_.start_, model.a_matrix_.index_, model.a_matrix_.value_ = rows.starts, rows.columns, rows.values
    return model


def _found(highs: highspy.Highs, is_full: bool) -> Found:
    """The status of HiGHS distinguishes a time-limited answer from an optimal one."""
    status, info = highs.getModelStatus(), highs.getInfo()
    has_answer = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    values = np.array(highs.getSolution().col_value) if has_answer else None
    if status == highspy.HighsModelStatus.kInfeasible:
        return Found("infeasible")
    if is_full or status == highspy.HighsModelStatus.kMemoryLimit:
        return Found("out of memory", values, info.mip_dual_bound)
    if status == highspy.HighsModelStatus.kTimeLimit:
        return Found("timed out", values, info.mip_dual_bound)
    assert has_answer, f"HiGHS stopped with {highs.modelStatusToString(status)}"
    return Found("optimal", values, info.mip_dual_bound)
