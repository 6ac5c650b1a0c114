"""Baseline: subblocks are kept as the parent has them or left out, as in Puzzle's no-op-only ablation (arXiv
2411.19146).

The exact solver on fewer options. This file knows that "skip" leaves a slot out.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from solvers.errors import Infeasible
from solvers.exact import solver
from solvers.exact.settings import DEFAULT, Settings
from solvers.exact.shortest_path import check_tiling, score_bound
from solvers.problem import Option, Problem, Solution
from solvers.refine.joint import filled

_SKIPPED = "skip"


def no_op_only(problem: Problem, parent: Sequence[Option], settings: Settings = DEFAULT) -> Solution:
    """The solution of least score, to the gap of the settings, of those made of the parent's own options and "skip".

    `parent` are the options that stand for the parent as it is, in any order. An option over several slots counts where
    each of its parts does, one a slot. Raises Infeasible where such options do not meet the limits or do not tile the
    slots, and SolverTimeoutError where nothing was found in the time.
    """
    started = time.monotonic()
    check_tiling(problem)
    own = filled(parent)
    fewer = replace(problem, options=tuple(option for option in problem.options if _is_kept_or_left_out(option, own)))
    try:
        check_tiling(fewer)
    except Infeasible as error:
        raise Infeasible(f"with only the parent's own options and skip: {error}") from error
    found = solver.solve(fewer, settings)
    return Solution.of(problem, found.options, score_bound(problem), time.monotonic() - started, "no_op_only")


def _is_kept_or_left_out(option: Option, own: Mapping[int, str]) -> bool:
    return all(name in (_SKIPPED, own.get(slot)) for slot, name in filled((option,)).items())
