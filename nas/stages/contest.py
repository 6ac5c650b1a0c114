"""The problem that strategies solve, and the measurement of their answers: trials, assembled and measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from blocklib.block import Architecture
from db import models
from db.store import Store
from nas.job.units import Limit
from nas.solve.plain import sizes_of
from nas.solve.solve import Measured, trial_row
from nas.stages.child import healing_key
from nas.stages.real_values import Reality
from solvers.errors import Infeasible
from solvers.exact.shortest_path import score_bound
from solvers.problem import Option, Problem, Solution
from solvers.refine.joint import parted


@dataclass(frozen=True)
class Chosen:
    """A strategy's answer, and how many whole models it ran to find it."""

    solution: Solution
    evaluations: int = 0


@dataclass(frozen=True)
class Contest:
    """The problem that strategies solve, and the measurement of an answer's real KL."""

    store: Store
    known: Measured
    budget: Sequence[Limit]
    reality: Reality
    evaluations: int
    """The number of whole models that a strategy may run."""

    @cached_property
    def problem(self) -> Problem:
        return self.known.problem(self.budget)

    @cached_property
    def own(self) -> tuple[Option, ...]:
        """The parent's own option at every slot; where precisions are chosen, the nearest to it of its own shapes."""
        own = set(Architecture.parse(self.known.search.parent_architecture).choices())
        nearest: dict[int, Option] = {}
        for option in self.problem.options:
            choice = self.known.choice(option)
            is_own = choice.unrounded in own or choice.is_table or choice.role == "cache"
            if is_own and (option.first not in nearest or option.score < nearest[option.first].score):
                nearest[option.first] = option
        return tuple(nearest[slot] for slot in sorted(nearest))

    @cached_property
    def questions(self) -> dict[str, Problem]:
        """`Measured.questions` of the budget: one, or in a plain search one for each size of all layers."""
        return self.known.questions(self.budget)

    def answers(self, choose: Callable[[Problem], Solution]) -> dict[str, Solution]:
        """The answer to each question that has one, by the question's name. Raises Infeasible where none has: that of
        the question nearest to the limits."""
        found, failed = {}, []
        for sizes, question in self.questions.items():
            try:
                found[sizes] = choose(question)
            except Infeasible as error:
                failed.append(error)
        if not found:
            raise min(failed, key=self._passed)
        return found

    def best(
        self, choose: Callable[[Problem], Solution], worth: Callable[[Solution], float] = lambda found: found.score
    ) -> Solution:
        """The answer of least `worth` to any of the questions, as a solution of the problem itself. Raises Infeasible
        as `answers` does."""
        found = self.answers(choose)
        return self.answer(found, min(found, key=lambda sizes: worth(found[sizes])))

    def under_each(self, choose: Callable[["Contest"], Chosen]) -> Chosen:
        """The answer of least score under any of the types of keys and values, where that is chosen. Raises Infeasible
        as `answers` does."""
        found, failed = [], []
        for known in self.known.by_cache.values() or (self.known,):
            try:
                found.append(choose(replace(self, known=replace(known, is_plain=self.known.is_plain))))
            except Infeasible as error:
                failed.append(error)
        if not found:
            raise min(failed, key=self._passed)
        return min(found, key=lambda chosen: chosen.solution.score)

    def answer(self, found: Mapping[str, Solution], sizes: str) -> Solution:
        """One of the `answers` as a solution of the problem itself, with a bound on all of them."""
        others = [score_bound(question) for name, question in self.questions.items() if name not in found]
        bound = min(others + [each.bound for each in found.values()])
        return self.parted(replace(found[sizes], bound=bound))

    def allows(self, found: Solution) -> bool:
        """Whether a solution keeps to the rule of a plain search, if this is one."""
        own = self.known.of(found.options)
        return not self.known.is_plain or len(sizes_of(own.architecture(self.parted(found).options))) <= 1

    def _passed(self, error: Infeasible) -> float:
        """By how much the limits at fault are passed, all of them together."""
        values = {limit.name: limit for limit in self.problem.limits}
        passed = [values[name].passed(least) for name, least in error.least.items()]
        return math.fsum(passed) if passed else math.inf

    def parted(self, found: Solution) -> Solution:
        """A solution of a question as a solution of the problem that it belongs to."""
        problem = self.known.of(found.options).problem(self.budget)
        return Solution.of(problem, parted(found.options, problem), found.bound, found.seconds, found.solver)

    def real(self, solutions: Sequence[Solution]) -> list[float]:
        """The KL to the parent of each architecture, assembled and not trained. Each becomes a trial."""
        return [_known(trial.kl_whole) for trial in self.trials(solutions)]

    def trials(self, solutions: Sequence[Solution], is_healed: bool = False) -> list[models.TrialRow]:
        """Each solution as a trial with its real KL. `is_healed`: the trial is that of the healed child."""
        heal = healing_key(self.reality.job) if is_healed else None
        rows = [trial_row(self.known, self.parted(solution), self.budget, heal) for solution in solutions]
        kls: dict[str, float] = {}
        try:
            for architecture, kl in self.reality.kl([row.architecture for row in rows]):
                kls[architecture] = kl
        finally:
            # This includes those that were measured before one failed.
            kept = [self._kept(row, kls[row.architecture]) for row in rows if row.architecture in kls]
        return kept

    def _kept(self, row: models.TrialRow, kl: float) -> models.TrialRow:
        row.kl_whole = kl
        trial = self.store.add_trial(row)
        return trial if trial.kl_whole is not None else self.store.update_trial(trial.id, kl_whole=kl)


def _known(value: float | None) -> float:
    assert value is not None
    return value
