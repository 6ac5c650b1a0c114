"""One budget over several searches that differ in their scenario: the best architecture, and whose it is."""

from collections.abc import Sequence

from nas.errors import BudgetNotMetError, IncomparableSearchesError, UsageError
from nas.job.stored import request_of
from nas.job.units import Limit
from nas.solve.effort import USUAL, Effort
from nas.solve.solve import Measured, solve
from solvers.errors import Infeasible
from solvers.problem import Solution
from solvers.queries.batch_sweep import sweep


def solve_across(
    searches: Sequence[Measured], budget: Sequence[Limit], effort: Effort = USUAL
) -> tuple[Measured, Solution]:
    """The best architecture over searches that differ in their scenario, in the batch size for one, and whose it is.

    A relative limit is of the parent's value in each scenario. Raises BudgetNotMetError where none has an answer, and
    IncomparableSearchesError where their scores are of different parents or texts, and do not compare.
    """
    if len(searches) == 1:
        return searches[0], solve(searches[0], budget, effort)
    _check_comparable(searches)
    asked = {
        " ".join(filter(None, (f"{known.search.name} ({known.search.id})", sizes))): (known, question)
        for known in searches
        for sizes, question in known.questions(budget).items()
    }
    try:
        questions = {name: question for name, (_, question) in asked.items()}
        name, found = sweep(questions, effort.over(searches[0].settings))
    except Infeasible as error:
        raise BudgetNotMetError(_none_of(searches, budget, effort)) from error
    known, _ = asked[name]
    return known, known.answer(budget, found)


def _check_comparable(searches: Sequence[Measured]) -> None:
    first = searches[0]
    for known in searches[1:]:
        one, other = first.search, known.search
        if one.id == other.id:
            raise UsageError(f"search {one.name} ({one.id}) is named twice")
        if known.metric != first.metric or one.parent_digest != other.parent_digest:
            raise IncomparableSearchesError(
                f"the scores of {one.name} and {other.name} cannot be compared: the parents or the metrics differ"
            )
        if one.score_text != other.score_text:
            raise IncomparableSearchesError(
                f"the scores of {one.name} and {other.name} cannot be compared: they come from different text"
            )
        if (products := request_of(one).products) != request_of(other).products:
            raise IncomparableSearchesError(
                f"the scores of {one.name} and {other.name} cannot be compared: compute.precision is {products} in one "
                f"and {request_of(other).products} in the other"
            )
        if one.score_text is None:
            raise IncomparableSearchesError(
                f"the text of the scores of {one.name} and {other.name} is unknown; run `nas search` on their jobs "
                "again, which only records it"
            )


def _none_of(searches: Sequence[Measured], budget: Sequence[Limit], effort: Effort) -> str:
    """A line for each search, which is asked again."""
    lines = []
    for known in searches:
        try:
            solve(known, budget, effort)
        except (BudgetNotMetError, TimeoutError) as why:
            lines.append(f"{known.search.name}: {why}")
    return "\n".join(lines)
