"""From a table measured elsewhere to the best choice in it: no search, no database, nothing of ours measured.

Knows which way is better and what the answer is in the table's own words. Does not know how a table is read.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from nas.errors import TableError
from nas.solve.effort import USUAL, Effort
from nas.tables.read import Imported, load, parse_limits
from solvers.exact.settings import Settings
from solvers.exact.solver import solve
from solvers.problem import Constraint, Option, Solution
from solvers.queries.sensitivity import BRIEF, Sensitivity, sensitivity

_OWN = Settings(time_limit_s=60.0)
_EXPLAINED = replace(BRIEF, time_limit_s=0.3)


@dataclass(frozen=True)
class SlotRun:
    """Neighbouring slots with one option each, all of one name. `place` is their range, `score` their sum."""

    place: str
    name: str
    score: float


@dataclass(frozen=True)
class TableAnswer:
    """The best choice in a table. With `maximise`, the solution's scores are the objective's, negated."""

    table: Imported
    objective: str
    maximise: bool
    limits: tuple[Constraint, ...]
    solution: Solution
    hangs_on: Sensitivity

    @property
    def total(self) -> float:
        """The objective's sum over what is chosen."""
        return self._turned(self.solution.score)

    @property
    def bound(self) -> float:
        """Proven: no choice within the limits has less than this (more, where it is maximised)."""
        return self._turned(self.solution.bound)

    def runs(self) -> tuple[SlotRun, ...]:
        """The choice, neighbours that are alike as one."""
        alike = [
            list(same) for _, same in groupby(self.solution.options, key=lambda option: (option.name, option.span))
        ]
        return tuple(
            SlotRun(
                self.table.place(same[0].first, same[-1].end),
                same[0].name,
                self._turned(math.fsum(option.score for option in same)),
            )
            for same in alike
        )

    def summary(self) -> str:
        """The answer in a line."""
        budget = ", ".join(f"{each.cost} {'>=' if each.minimum else '<='} {each.value:.10g}" for each in self.limits)
        solution = self.solution
        side = ("most" if self.maximise else "least") if solution.status == "optimal" else "best found"
        unit = "layers" if self.table.layers else "slots"
        return (
            f"{self.objective} {self.total:.6g}, the {side} within {budget or 'no budget'}: {solution.status}, bound "
            f"{self.bound:.6g}, gap {solution.gap:.1e}; {self.table.slots} {unit}, {len(self.table.entries)} options"
        )

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "table": self.table.source,
            "objective": self.objective,
            "maximise": self.maximise,
            "total": self.total,
            "bound": self.bound,
            "gap": self.solution.gap,
            "status": self.solution.status,
            "seconds": self.solution.seconds,
            "costs": dict(self.solution.costs),
            "limits": [
                {
                    "cost": limit.cost,
                    "minimum" if limit.minimum else "maximum": limit.value,
                    "price": self.hangs_on.prices[limit.name],
                }
                for limit in self.limits
            ],
            "choices": [self._choice(option) for option in self.solution.options],
            "close_calls": [
                {
                    "choices": [self._choice(option) for option in call.options],
                    "total": self._turned(call.score),
                    "worse": call.worse,
                }
                for call in self.hangs_on.close_calls
            ],
        }

    def close_calls(self) -> tuple[str, ...]:
        """In a line each: what was almost chosen, and by how much it is worse."""
        return tuple(
            f"{self._named(call.options)} in place of {self._named(call.instead_of)}: {abs(call.worse):.2g} "
            f"{'better' if call.worse < 0 else 'worse'}"
            for call in self.hangs_on.close_calls
        )

    def _named(self, options: Sequence[Option]) -> str:
        return ", ".join(f"{option.name} at {self.table.place(option.first, option.end)}" for option in options)

    def _choice(self, option: Option) -> dict[str, Any]:
        layer = {"layer": self.table.layers[option.first]} if self.table.layers else {}
        where = {"slot": option.first, "span": option.span}
        return where | layer | {"option": option.name, "score": self._turned(option.score)}

    def _turned(self, score: float) -> float:
        return -score + 0.0 if self.maximise else score


def solve_table(
    path: Path,
    objective: str | None = None,
    budget: Collection[str] = (),
    maximise: bool = False,
    effort: Effort = USUAL,
) -> TableAnswer:
    """The best choice in the table at `path`; what is None or empty is the table's own, or a default.

    Raises TableError for a mistake in the table or in what is asked of it, Infeasible where the limits cannot be met.
    """
    table = load(path)
    objective = objective or table.objective
    if objective is None:
        raise TableError(f"{path}: this table needs --objective, the path of what to minimise, like metrics.kl_div")
    limits: Sequence[Constraint] = parse_limits(budget) if budget else table.budget
    problem = table.problem(objective, limits, maximise)
    asked = effort.over(_OWN)
    solution = solve(problem, asked)
    hangs_on = sensitivity(problem, solution, replace(_EXPLAINED, memory_bytes=asked.memory_bytes))
    return TableAnswer(table, objective, maximise, tuple(limits), solution, hangs_on)
