"""The solver's question and answer: options that tile slots, limits on their summed costs, a solution.

Numbers and names only. This file knows what makes a problem well-posed and a solution right; it does not know how to
find one, nor what a slot, a name, a score or a cost stands for. Scores and costs are in the caller's units throughout.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal

from solvers.errors import Infeasible, ProblemError

LIMIT_TOLERANCE = 1e-9
"""A limit may be passed by this share of itself: enough for the rounding of sums, nothing anyone could measure."""

OPTIMAL_GAP = 1e-6
"""The largest proven gap that is called optimal, however large a gap was asked for."""


@dataclass(frozen=True)
class Option:
    """One thing that may stand at slots first .. first + span - 1. `name` is its spelling, like "ffn256".

    `parts` are the names of what fills its slots, one for each, if it is made of such things; else it is empty.
    """

    first: int
    span: int
    name: str
    score: float
    costs: Mapping[str, float]
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        slots = f"slot {self.first}" if self.span == 1 else f"slots {self.first}..{self.end - 1}"
        return f"{self.name} at {slots}"

    @property
    def end(self) -> int:
        """The first slot after it."""
        return self.first + self.span

    @property
    def key(self) -> tuple[int, int, str]:
        """The option without its numbers: unique in a problem."""
        return self.first, self.span, self.name


@dataclass(frozen=True)
class Constraint:
    """A cost's sum may not pass `value`: from below where it is a maximum, from above where it is a minimum."""

    cost: str
    value: float
    minimum: bool = False

    @property
    def name(self) -> str:
        """How it is named to the user: the cost of a maximum, "minimum" and the cost of a minimum."""
        return f"minimum {self.cost}" if self.minimum else self.cost

    @property
    def sign(self) -> int:
        """It holds where sign * sum <= sign * value."""
        return -1 if self.minimum else 1

    def holds(self, total: float) -> bool:
        """Whether a sum of costs meets it, to `LIMIT_TOLERANCE` of its value."""
        return self.sign * (total - self.value) <= LIMIT_TOLERANCE * abs(self.value)

    def passed(self, total: float) -> float:
        """By how much a sum of costs passes it, in shares of its value; 0 where it holds."""
        return 0.0 if self.holds(total) else abs(total - self.value) / (abs(self.value) or 1.0)

    def broken(self, total: float) -> str:
        side = "under the minimum" if self.minimum else "over the maximum"
        return f"{self.cost} is {total:.10g}, {side} {self.value:.10g}"


@dataclass(frozen=True)
class Problem:
    """Choose options that cover each of `slots` slots once, within the limits, at the least total score.

    `maximums` and `minimums` limit the sums of the chosen options' costs, by cost name. Every option has every cost.
    Raises ProblemError, naming slot and option, where a number is missing or not finite, an option stands twice or
    outside the slots, or a limit is on a cost that no option has.
    """

    slots: int
    options: tuple[Option, ...]
    maximums: Mapping[str, float]
    minimums: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ProblemError(f"a problem has at least one slot, not {self.slots}")
        names = sorted({name for option in self.options for name in option.costs})
        seen: set[tuple[int, int, str]] = set()
        for option in self.options:
            _check_option(option, self.slots, names)
            if option.key in seen:
                raise ProblemError(
                    f"{option} stands twice; an option is known by its first slot, its span and its name"
                )
            seen.add(option.key)
        for limit in self.limits:
            if self.options and limit.cost not in names:
                raise ProblemError(f"limit on {limit.name}, a cost no option has; the options have {', '.join(names)}")
            if not _is_finite(limit.value):
                raise ProblemError(f"limit on {limit.name} is {limit.value}; give a finite number or leave it out")

    @property
    def limits(self) -> tuple[Constraint, ...]:
        """Its maximums, then its minimums."""
        return (
            *(Constraint(cost, value) for cost, value in self.maximums.items()),
            *(Constraint(cost, value, minimum=True) for cost, value in self.minimums.items()),
        )


def _check_option(option: Option, slots: int, cost_names: Sequence[str]) -> None:
    if option.span < 1 or option.first < 0 or option.end > slots:
        raise ProblemError(f"{option} is not within slots 0..{slots - 1}")
    if option.parts and len(option.parts) != option.span:
        raise ProblemError(f"{option} has {len(option.parts)} parts; an option has one for each of its slots, or none")
    if not _is_finite(option.score):
        raise ProblemError(f"{option} has score {option.score}; it must be a finite number")
    for name in cost_names:
        if name not in option.costs:
            raise ProblemError(f"{option} has no cost {name!r}, which other options have")
        if not _is_finite(option.costs[name]):
            raise ProblemError(f"{option} has cost {name} = {option.costs[name]}; it must be a finite number")


def _is_finite(value: object) -> bool:
    """Also False for None and other things that are no number at all."""
    return isinstance(value, Real) and math.isfinite(value)


@dataclass(frozen=True)
class Solution:
    """Options that tile the slots, in slot order, and what is proven of them.

    `bound` is a proven lower bound on the score of every solution, and `gap` the share of the score (or of the bound,
    whichever is larger) by which this one may miss it. It is "optimal" where that is at most `OPTIMAL_GAP`.
    """

    options: tuple[Option, ...]
    score: float
    costs: Mapping[str, float]
    status: Literal["optimal", "feasible"]
    bound: float
    gap: float
    seconds: float
    solver: str

    @staticmethod
    def of(problem: Problem, options: Iterable[Option], bound: float, seconds: float, solver: str) -> "Solution":
        """The chosen options summed up, and verified. Raises ValueError where they are no solution of the problem."""
        chosen = tuple(sorted(options, key=lambda option: option.first))
        score = math.fsum(option.score for option in chosen)
        # The solver sums in another order than we do: its bound on an optimal score may be an ulp above ours.
        bound = min(bound, score)
        gap = relative_gap(score, bound)
        status: Literal["optimal", "feasible"] = "optimal" if gap <= OPTIMAL_GAP else "feasible"
        solution = Solution(chosen, score, total_costs(chosen), status, bound, gap, seconds, solver)
        verify(problem, solution)
        return solution


def total_costs(options: Sequence[Option]) -> dict[str, float]:
    """Each cost summed over the options, correctly rounded, so that no order of summing matters."""
    return {name: math.fsum(option.costs[name] for option in options) for name in options[0].costs} if options else {}


def relative_gap(score: float, bound: float) -> float:
    """How far a score may be from the best, in shares of the larger of the two; 0 where it is proven best."""
    return 0.0 if bound >= score else (score - bound) / max(abs(score), abs(bound))


def infeasible_choice(problem: Problem, options: Sequence[Option], rule: str) -> Infeasible:
    """A baseline's: `rule` says what was tried, `options` are the best it came to, which break a limit."""
    totals = total_costs(options)
    broken = [limit for limit in problem.limits if not limit.holds(totals[limit.cost])]
    assert broken, "this choice is a solution"
    reached = {limit.name: totals[limit.cost] for limit in broken}
    message = f"{rule}: {'; '.join(limit.broken(totals[limit.cost]) for limit in broken)}"
    return Infeasible(message, tuple(reached), reached)


def verify(problem: Problem, solution: Solution) -> None:
    """Checks a solution against its problem, trusting none of its numbers.

    Every slot is covered once, by options of the problem; score and costs are what they sum to; every limit holds to
    `LIMIT_TOLERANCE` of its value; bound, gap and status agree. Raises ValueError saying which does not.
    """
    known = {option.key: option for option in problem.options}
    slot = 0
    for option in solution.options:
        if known.get(option.key) != option:
            raise ValueError(f"{option} is not an option of the problem, or not with these numbers")
        if option.first != slot:
            raise ValueError(f"{option} does not start at slot {slot}, where the one before it ends")
        slot = option.end
    if slot != problem.slots:
        raise ValueError(f"the solution covers {slot} of {problem.slots} slots")
    for error in _wrong_numbers(problem, solution):
        raise ValueError(error)


def _wrong_numbers(problem: Problem, solution: Solution) -> Iterator[str]:
    score = math.fsum(option.score for option in solution.options)
    if not math.isclose(solution.score, score, rel_tol=1e-12):
        yield f"the solution says its score is {solution.score!r}; its options sum to {score!r}"
    totals = total_costs(solution.options)
    if solution.costs.keys() != totals.keys():
        yield f"the solution has costs {sorted(solution.costs)}; its options have {sorted(totals)}"
    for name, total in totals.items():
        if not math.isclose(solution.costs[name], total, rel_tol=1e-12):
            yield f"the solution says its {name} is {solution.costs[name]!r}; its options sum to {total!r}"
    for limit in problem.limits:
        if not limit.holds(totals[limit.cost]):
            yield limit.broken(totals[limit.cost])
    if not solution.bound <= solution.score:
        yield f"the bound {solution.bound!r} is not at or below the score {solution.score!r}"
    if not math.isclose(solution.gap, relative_gap(solution.score, solution.bound), rel_tol=1e-9, abs_tol=1e-15):
        yield f"the gap {solution.gap!r} is not that from {solution.bound!r} to {solution.score!r}"
    if (solution.status == "optimal") != (solution.gap <= OPTIMAL_GAP):
        yield f"a gap of {solution.gap!r} is not {solution.status}"
