"""The sensitivity of an answer, in the user's metrics: how much the budget is worth, and what was almost chosen.

A trial keeps it among its details, where the report and `nas solve` find it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from cost_models.metrics import METRICS
from db import models
from db.store import Store
from nas.job.units import Limit, format_quantity
from nas.solve.solve import Measured
from solvers.problem import Problem, Solution
from solvers.queries.sensitivity import BRIEF, CloseCall, sensitivity
from solvers.refine.joint import joined, parted

SHARE = 0.01
"""The share of a limit by which it is made looser, to say how much that buys."""

_SHOWN = 3
"""Parts of a close call that are named in a line."""


@dataclass(frozen=True)
class Price:
    """The worth of a limit on `metric`: if it is `step` looser (1 % of it, in its unit), the score falls by `buys`."""

    metric: str
    step: float
    buys: float

    def said(self, score: str) -> str:
        """In a line; `score` is the score's name, like "predicted KL"."""
        if not self.buys:
            return f"{self.metric} does not bind: a looser limit on it would not lower the {score}"
        looser = "less" if METRICS[self.metric].at_least else "more"
        step = format_quantity(self.metric, self.step)
        return f"{step} {looser} {self.metric} (1 % of its limit) would lower the {score} by {self.buys:.2g}"


@dataclass(frozen=True)
class Close:
    """An architecture with `choices` in place of `instead_of`, and otherwise the answer, is so much worse in score;
    better, where that is negative: the answer is then not proven the best."""

    choices: tuple[str, ...]
    instead_of: tuple[str, ...]
    worse: float

    def said(self, score: str) -> str:
        apart = f"{abs(self.worse):.2g} {'lower' if self.worse < 0 else 'higher'}"
        return f"{_some(self.choices)} in place of {_some(self.instead_of)}: the {score} {apart}"


@dataclass(frozen=True)
class Explained:
    """Prices in the order of the budget, close calls from the closest on."""

    prices: tuple[Price, ...]
    close_calls: tuple[Close, ...]

    @staticmethod
    def of(trial: models.TrialRow) -> "Explained | None":
        """The explanation that the trial keeps; None if it was never explained."""
        kept = trial.explained
        if kept is None:
            return None
        return Explained(
            tuple(Price(**one) for one in kept["prices"]),
            tuple(Close(tuple(one["choices"]), tuple(one["instead_of"]), one["worse"]) for one in kept["close_calls"]),
        )


def explain(
    store: Store, known: Measured, budget: Sequence[Limit], solution: Solution, trial: models.TrialRow
) -> models.TrialRow:
    """The trial that `solution` is, with its explanation, which is worked out if it is not known yet."""
    if Explained.of(trial) is not None:
        return trial
    found = {"explained": asdict(explained(known, budget, solution))}
    if store.is_read_only:
        trial.details = trial.details | found
        return trial
    return store.update_trial(trial.id, details=found)


def explained(known: Measured, budget: Sequence[Limit], solution: Solution) -> Explained:
    """Explain `solution`, the best within the budget; if it is plain, beside others of its sizes, and in any case of
    its type of keys and values. Takes up to about a
    second."""
    known = known.of(solution.options)
    problem, pairs = known.problem(budget), known.question_of(budget, solution.options)
    whole = Solution.of(pairs, joined(solution.options, pairs), solution.bound, solution.seconds, solution.solver)
    found = sensitivity(pairs, whole, replace(BRIEF, memory_bytes=known.settings.memory_bytes))
    most = known.ceilings(budget)
    return Explained(
        tuple(_price(known, limit, found.prices, most) for limit in budget),
        tuple(_close(known, problem, call) for call in found.close_calls),
    )


def _close(known: Measured, problem: Problem, call: CloseCall) -> Close:
    """Without the parts of pairs that stay as they are."""
    ones, others = (
        [str(known.choice(option)) for option in parted(options, problem)]
        for options in (call.options, call.instead_of)
    )
    return Close(
        tuple(one for one in ones if one not in others), tuple(one for one in others if one not in ones), call.worse
    )


def _price(known: Measured, limit: Limit, prices: Mapping[str, float], most: Mapping[str, float]) -> Price:
    """A throughput's is that of the latency it asks for. If two limits are on one cost, only the tighter can bind."""
    cost, ceiling = known.ceiling(limit)
    step = SHARE * limit.absolute(known.whole(limit.metric))
    return Price(limit.metric, step, prices[cost] * SHARE * ceiling if ceiling <= most[cost] else 0.0)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
