"""Solve a search beyond the sum of scores: choose the best of several architectures, each assembled and its real KL
measured.

`solvers/refine/refine.py` proposes them; here each becomes a trial as soon as its round is measured. The same question
leads to the same proposals, so an interrupted run resumes, and a finished one only prints its answer.
"""

from collections.abc import Sequence
from time import monotonic

from rich.console import Console

from db import models
from db.models import now
from db.store import Store
from nas.errors import BudgetNotMetError, ScoreMetricError
from nas.job.units import Limit
from nas.solve.effort import USUAL, Effort
from nas.solve.solve import Measured, not_met
from nas.stages.contest import Chosen, Contest
from nas.stages.real_values import Reality
from solvers.errors import Infeasible
from solvers.problem import Solution
from solvers.queries.batch_sweep import best_of
from solvers.refine.refine import refine


def solve_refined(
    store: Store,
    known: Measured,
    budget: Sequence[Limit],
    evaluations: int,
    console: Console,
    effort: Effort = USUAL,
) -> tuple[Solution, models.TrialRow]:
    """The solution of least real KL, and the trial that it is, not healed. Raises BudgetNotMetError,
    ScoreMetricError."""
    started, clock, search = now(), monotonic(), known.search
    with Reality(store, search, console) as reality:
        contest = Contest(store, known, budget, reality, evaluations)
        try:
            with reality.counting("refine", evaluations):
                found = refined(contest, effort).solution
        except Infeasible as error:
            raise BudgetNotMetError(not_met(known, budget, error)) from error
        (trial,) = contest.trials([found])
        store.add_stage(
            models.StageRow(
                search_id=search.id, name="refine", started_at=started, seconds=monotonic() - clock,
                work_done=reality.measured,
            )
        )  # fmt: skip
        return contest.parted(found), trial


def refined(contest: Contest, effort: Effort = USUAL) -> Chosen:
    """The best of the architectures that may be run, beyond the sum of scores; what all layers share, as the sizes of
    plain ones, is that of the sum's best. Raises ScoreMetricError if the scores are not KLs, because refining learns
    from KLs.
    """
    if contest.known.metric != "kl":
        raise ScoreMetricError(
            f"refining corrects sums of KL, but these scores are {contest.known.metric}; search with score.metric: kl"
        )
    settings = effort.over(contest.known.settings)
    questions = contest.known.questions(contest.budget)
    shared = best_of(questions, settings)[0] if len(questions) > 1 else next(iter(questions))
    found = refine(questions[shared], contest.real, contest.evaluations, settings)
    return Chosen(found.solution, found.evaluations)
