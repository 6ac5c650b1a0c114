"""The problem that strategies solve, and the measurement of their answers: trials, assembled and measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from blocklib.block import Architecture
from db import models
from db.store import Store
from nas.job.units import Limit
from nas.solve.solve import Measured, trial_row
from nas.stages.child import healing_key
from nas.stages.real_values import Reality
from solvers.problem import Option, Problem, Solution
from solvers.refine.joint import paired, parted


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
        """The parent's own option at every slot."""
        own = set(Architecture.parse(self.known.search.parent_architecture).choices())
        return tuple(option for option in self.problem.options if self.known.choice(option) in own)

    def in_pairs(self, choose: Callable[[Problem], Solution]) -> Solution:
        """The problem in which options that were scored together are offered only together."""
        return self.parted(choose(paired(self.problem)))

    def parted(self, found: Solution) -> Solution:
        """A solution of the paired problem as a solution of the problem itself."""
        return Solution.of(self.problem, parted(found.options, self.problem), found.bound, found.seconds, found.solver)

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
