"""How a solver ends without an answer, and what can be wrong with a problem. Standard library only.

A solution that does not hold up is none of these: it is a bug, and raises a plain ValueError.
"""

from collections.abc import Mapping

from nas.errors import NasError


class SolverError(NasError):
    """The base of this room's errors."""


class ProblemError(SolverError, ValueError):
    """A problem is ill-posed: a number is missing or not finite, an option stands twice or outside the slots, or a
    limit is on a cost that no option has."""


class Infeasible(SolverError, ValueError):
    """No choice meets the limits: of all tilings where the exact solver says so, of those it may make for a baseline.

    `budgets` names the limits at fault: the smallest set that cannot be met together (`Constraint.name`); it is empty
    where the options do not tile the slots. `least` maps each of them to the least its cost can reach with no other
    limit, `together` to the least while the others of the set hold. For a minimum both are the most it can reach. Where
    `is_smallest` is false, time ran out, and the set is all limits rather than the smallest.
    """

    def __init__(
        self,
        message: str,
        budgets: tuple[str, ...] = (),
        least: Mapping[str, float] | None = None,
        together: Mapping[str, float] | None = None,
        is_smallest: bool = True,
    ) -> None:
        super().__init__(message)
        self.budgets = budgets
        self.least = dict(least or {})
        self.together = dict(together or {})
        self.is_smallest = is_smallest

    def __reduce__(self) -> tuple[object, ...]:
        return Infeasible, (str(self), self.budgets, self.least, self.together, self.is_smallest)


class SolverTimeoutError(SolverError, TimeoutError):
    """Time or memory ran out before a solution was found."""


class MemoryLimitError(SolverError, ValueError):
    """The memory that a solver is given is too little to start with."""


class RoundingError(SolverError, ValueError):
    """A MIP solver cannot tell the sums of a problem from their limit."""


class SolverCrashError(SolverError, RuntimeError):
    """A MIP solver's process was ended, or ended without an answer."""
