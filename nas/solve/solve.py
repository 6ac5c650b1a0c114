"""From the store alone to an architecture: a search's options and a budget become a problem, its solution a trial.

Needs neither the parent nor its text, so a new budget costs seconds. Knows what a budget means; the solver does not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from blocklib.block import CACHE, Architecture, Block, Choice
from cost_models.cost import ZERO, Cost
from cost_models.metrics import METRICS, Metric
from cost_models.scenario import Scenario
from db import models
from db.measured import KnownOption
from db.store import Store
from nas.errors import (
    BudgetError,
    BudgetNotMetError,
    ScoreMetricError,
    UnfinishedSearchError,
)
from nas.job.digest import digest
from nas.job.stored import StoredRequest, parent_costs_of, request_of, scenario_in
from nas.job.units import Limit, did_you_mean, format_quantity
from nas.solve.effort import USUAL, Effort
from nas.solve.plain import plain_questions, sizes_of
from solvers.errors import Infeasible
from solvers.exact.settings import Settings
from solvers.problem import Option, Problem, Solution
from solvers.queries.batch_sweep import best_of
from solvers.refine.joint import paired, parted

EXACT, PLAIN = "mip", "plain"
"""The names that answers of the exact solver go by: the best of all, and the best whose layers are of one size."""
SCORES = ("kl", "lm_loss")
"""The scores that may be minimised; less is better."""
BY_EVALUATION = ("refine", "evolution")
"""Solvers that choose by what whole architectures really are; their sums of scores prove nothing."""


@dataclass(frozen=True)
class Measured:
    """A search with everything measured: what a budget is solved on."""

    search: models.SearchRow
    scenario: Scenario
    fixed: Cost
    parent: Cost
    options: tuple[Option, ...]
    metric: str
    """The kind of the options' scores, kl or lm_loss."""
    costs: Mapping[Choice, Cost]
    """Those of the choices that the options stand for, with how far they may be off."""
    is_plain: bool = False
    """Whether the layers of an answer are all of one size, as in any checkpoint of the parent's family."""
    by_cache: Mapping[str, "Measured"] = field(default_factory=dict)
    """Where the type of keys and values is chosen: the same under each, by the option that says it. The options and
    costs of the whole are then those under the first."""

    @property
    def layers(self) -> int:
        return Architecture.parse(self.search.parent_architecture).layers

    @cached_property
    def request(self) -> StoredRequest:
        """The search's job."""
        return request_of(self.search)

    @property
    def settings(self) -> Settings:
        """The solver's, as the search's job says."""
        asked = self.request.solver
        return Settings(gap=asked.gap, time_limit_s=asked.time_limit, engine=asked.engine, memory_bytes=asked.memory)

    @property
    def budget(self) -> tuple[Limit, ...]:
        """The budget of the search's job."""
        return self.request.budget

    @cached_property
    def _choices(self) -> Mapping[tuple[int, int, str], Choice]:
        return {(choice.first_slot, choice.span, str(choice.what)): choice for choice in self.costs}

    def choice(self, option: Option) -> Choice:
        """The choice that one of the options stands for."""
        return self._choices[option.key]

    def architecture(self, options: Iterable[Option]) -> Architecture:
        """The architecture that options make which tile the slots, in their order."""
        return Architecture.of(tuple(map(self.choice, options)), self.layers)

    def under(self, architecture: Architecture) -> "Measured":
        """The same under the type of keys and values that an architecture of the search says."""
        return self._by_name(str(CACHE.at(architecture.cache)))

    def of(self, options: Sequence[Option]) -> "Measured":
        """The same under the type of keys and values that a solution says, whose options these are."""
        return self._by_name(options[-1].name)

    def _by_name(self, cache: str) -> "Measured":
        return replace(self.by_cache[cache], is_plain=self.is_plain) if cache in self.by_cache else self

    def parent_totals(self) -> dict[str, float]:
        """The whole parent, predicted: every metric that is known of it, by column."""
        return self.parent.totals(self.scenario, self.parent.parameters)

    def whole(self, metric: str) -> float:
        """The parent's value of a budget's metric. Raises BudgetError where the scenario has none of it,
        UnfinishedSearchError where the parent or an option was never measured for it."""
        row = METRICS[metric]
        value = self.parent_totals().get(row.column)
        if row.summed.column not in self.options[0].costs:
            raise UnfinishedSearchError(
                f"{metric} was not measured in search {self.search.name} ({self.search.id}); put a limit on it into "
                "the budget of its job, and run `nas search` on that"
            )
        if not value:
            raise BudgetError(
                f"{metric}: the scenario generates {self.scenario.generated_tokens} token, so there is no {metric}; "
                "set scenario.generated_tokens to 2 or more"
            )
        return value

    def problem(self, budget: Sequence[Limit]) -> Problem:
        """Limits on the options' costs: the budget less the fixed part."""
        fixed = self.fixed.metrics(self.scenario)
        most = {cost: value - fixed[cost] for cost, value in self.ceilings(budget).items()}
        return Problem(max(option.end for option in self.options), self.options, most)

    def questions(self, budget: Sequence[Limit]) -> dict[str, Problem]:
        """The problems whose best answer is that to the budget, options that were scored together offered in pairs:
        one, or one for each of what all layers share: sizes, or a type of keys and values, or both."""
        found: dict[str, Problem] = {}
        for cache, known in (self.by_cache or {"": self}).items():
            problem = known.problem(budget)
            asked = plain_questions(problem, known.costs, self.layers) if self.is_plain else {"": paired(problem)}
            found |= {" ".join(filter(None, (sizes, cache))): question for sizes, question in asked.items()}
        return found

    def question_of(self, budget: Sequence[Limit], options: Sequence[Option]) -> Problem:
        """The question that these options answer, whose type of keys and values this is under."""
        questions, sizes = self.questions(budget), sizes_of(self.architecture(options))
        return next((questions[each] for each in sizes if each in questions), next(iter(questions.values())))

    def answer(self, budget: Sequence[Limit], found: Solution) -> Solution:
        """The solution of a question as one of the problem that it belongs to."""
        problem = self.of(found.options).problem(budget)
        solver = PLAIN if self.is_plain and found.solver == EXACT else found.solver
        return Solution.of(problem, parted(found.options, problem), found.bound, found.seconds, solver)

    def ceilings(self, budget: Sequence[Limit]) -> dict[str, float]:
        """The most that a whole model may cost: the tightest limit on each cost, such as latency with throughput."""
        most: dict[str, float] = {}
        for cost, value in map(self.ceiling, budget):
            most[cost] = min(value, most.get(cost, float("inf")))
        return most

    def ceiling(self, asked: Limit) -> tuple[str, float]:
        """A limit of the budget as (cost, most it may be) for a whole model."""
        metric, value = asked.row, asked.absolute(self.whole(asked.metric))
        return metric.summed.column, metric.to_summed(value, self.scenario, self.parent.parameters)

    def from_summed(self, metric: Metric, value: float) -> float:
        """A value of the metric that the solver sums as one of `metric`."""
        return metric.from_summed(value, self.scenario, self.parent.parameters)

    def totals(self, solution: Solution) -> dict[str, float]:
        """The cost of the solver's answer as a whole model: every metric."""
        fixed = self.fixed.metrics(self.scenario)
        linear = {name: value + fixed[name] for name, value in solution.costs.items()}
        known = [metric for metric in METRICS.values() if metric.summed.column in linear]
        return {metric.column: self.from_summed(metric, linear[metric.summed.column]) for metric in known}

    def predicted(self, choices: Iterable[Choice]) -> dict[str, Any]:
        """The columns of a trial that say what an architecture of these choices costs, and how far that may be off."""
        whole = sum((self.costs[choice] for choice in choices), self.fixed)
        columns: dict[str, Any] = {"predicted_contention": whole.contention}
        for metric in METRICS.values():
            value = metric.of(whole, self.scenario, self.parent.parameters)
            columns[metric.predicted] = int(value) if value is not None and metric.unit.is_counted else value
            if metric.is_measured:
                columns[metric.predicted_error] = metric.summed.error(whole, self.scenario)
        return columns


def measured(store: Store, search: models.SearchRow, metric: str | None = None) -> Measured:
    """Everything that the store knows about a search. `metric`, one of `SCORES`, is the request's own unless given.

    Raises UnfinishedSearchError where something is missing, ScoreMetricError for another metric.
    """
    metric = metric or request_of(search).metric
    if metric not in SCORES:
        raise ScoreMetricError(f"{metric!r} is not a score to minimise; {did_you_mean(metric, SCORES)}")
    known, parent = store.options(search.id), parent_costs_of(search)
    missing = [
        option.option.choice
        for option in known
        if option.costs is None or (option.score is None and option.option.score_key is not None)
    ]
    if not known or missing or parent.fixed is None or parent.whole is None:
        example = f" (for one, {missing[0]})" if missing else ""
        raise UnfinishedSearchError(
            f"search {search.name} ({search.id}) is not completely measured{example}; "
            "run `nas search` on its job again, and it resumes"
        )
    found = {Choice.parse(one.option.choice): one for one in known}
    caches = [choice for choice in found if choice.role == "cache"]
    if not caches:
        return _under(None, found, search, metric)
    under = {str(cache.what): _under(cache, found, search, metric) for cache in caches}
    return replace(next(iter(under.values())), by_cache=under)


def _under(
    cache: Choice | None, options: Mapping[Choice, KnownOption], search: models.SearchRow, metric: str
) -> Measured:
    """The search with keys and values in the type of one of its choices; None: as the scenario says."""
    scenario, parent = scenario_in(search), parent_costs_of(search)
    assert parent.fixed is not None
    assert parent.whole is not None
    offered = {choice: one for choice, one in options.items() if choice.role != "cache" or choice == cache}
    # A type's option lists no costs of its own: each stands in place of the one that is named alike without the type.
    kept = {} if cache is None else {row.name: row for row in options[cache].costs or ()}
    costs = {
        choice: cost_of(*(kept.get(f"{row.name} {cache.what}", row) if cache else row for row in one.costs or ()))
        for choice, one in offered.items()
        if choice != cache
    }
    costs |= {} if cache is None else {cache: ZERO}
    linear = _known_of_all(costs, parent.fixed, scenario)
    return Measured(
        search=search,
        scenario=scenario,
        fixed=parent.fixed,
        parent=parent.whole,
        options=tuple(
            Option(
                one.option.first_slot,
                one.option.span,
                one.option.name,
                # The parent's own options have no score row: they move nothing.
                getattr(one.score, metric) if one.score else 0.0,
                linear[choice],
                _parts(choice),
            )
            for choice, one in offered.items()
        ),
        metric=metric,
        costs=costs,
        is_plain=request_of(search).is_plain,
    )


def _parts(choice: Choice) -> tuple[str, ...]:
    """The two subblocks of a block in one layer; a block with a fused run, or several in parallel, is one thing."""
    is_of_one_layer = isinstance(choice.what, Block) and choice.what.layers == 1
    return tuple(str(part.what) for part in choice.parts) if is_of_one_layer else ()


def _known_of_all(costs: Mapping[Choice, Cost], fixed: Cost, scenario: Scenario) -> dict[Choice, dict[str, float]]:
    """The linear metrics of each choice, of those that are known of every choice and of the fixed part."""
    linear = {choice: cost.metrics(scenario) for choice, cost in costs.items()}
    shared = set(fixed.metrics(scenario)).intersection(*linear.values())
    return {choice: {name: value for name, value in one.items() if name in shared} for choice, one in linear.items()}


def cost_of(*rows: models.CostRow) -> Cost:
    """The sum of the costs that rows keep."""
    return sum((Cost(**{each.name: getattr(row, each.name) for each in fields(Cost)}) for row in rows), ZERO)


def solve(known: Measured, budget: Sequence[Limit], effort: Effort = USUAL) -> Solution:
    """The best architecture within the budget. Raises BudgetNotMetError."""
    try:
        _, found = best_of(known.questions(budget), effort.over(known.settings))
    except Infeasible as error:
        raise BudgetNotMetError(not_met(known, budget, error)) from error
    return known.answer(budget, found)


def trial_row(
    known: Measured,
    solution: Solution,
    budget: Sequence[Limit],
    heal: dict[str, Any] | None,
    solved_for: Sequence[Limit] | None = None,
    built: str | None = None,
) -> models.TrialRow:
    """A solution as a trial, nothing of it built yet. Proposed again by the same solver for the same budget, it is the
    same trial.

    `solved_for`: the limits that its score, bound and gap are proven within, where they are not those of the budget.
    `built`: the key of the child it is, where that was built.
    """
    known = known.of(solution.options)
    choices = [known.choice(option) for option in solution.options]
    limits = None if solved_for is None or tuple(solved_for) == tuple(budget) else _plain(solved_for)
    is_of_sums = solution.solver not in BY_EVALUATION
    architecture, asked_for = str(known.architecture(solution.options)), _plain(budget)
    child_key = built or _child_key(known.search.id, architecture, heal)
    return models.TrialRow(
        key=digest(child_key, asked_for, known.metric, solution.solver),
        child_key=child_key,
        search_id=known.search.id,
        solver=solution.solver,
        architecture=architecture,
        budget=asked_for,
        score=solution.score,
        bound=solution.bound if is_of_sums else None,
        gap=solution.gap if is_of_sums else None,
        status=solution.status if is_of_sums else "evaluated",
        **known.predicted(choices),
        details={"choices": list(map(str, choices)), "metric": known.metric}
        | ({"solved_for": limits} if limits else {}),
    )


def _plain(budget: Sequence[Limit]) -> dict[str, str]:
    """A budget as a row keeps it."""
    return {limit.metric: limit.text for limit in budget}


def _child_key(search_id: str, architecture: str, heal: dict[str, Any] | None) -> str:
    return digest(search_id, architecture, heal)


def healed_row(trial: models.TrialRow, heal: dict[str, Any] | None) -> models.TrialRow:
    """The same proposal for the same budget, as the trial of the child that `heal` makes of it; nothing of it is built
    yet. `heal` is what `trial_row` takes."""
    child_key = _child_key(trial.search_id, trial.architecture, heal)
    same = ("search_id", "solver", "architecture", "budget", "score", "bound", "gap", "status", "details", "kl_whole")
    predicted = [column.name for column in models.TrialRow.__table__.columns if column.name.startswith("predicted_")]
    return models.TrialRow(
        key=digest(child_key, trial.budget, trial.metric, trial.solver),
        child_key=child_key,
        **{name: getattr(trial, name) for name in (*same, *predicted)},
    )


def proposed(store: Store, known: Measured, solution: Solution, budget: Sequence[Limit]) -> models.TrialRow:
    """A solution as a trial of the store: of the child that the search built of this architecture, if it did. A store
    that can only be read keeps none; the trial then has no id."""
    built = store.built_child(known.search.id, str(known.of(solution.options).architecture(solution.options)))
    row = trial_row(known, solution, budget, None, built=built)
    return store.as_added(row) if store.is_read_only else store.add_trial(row)


def not_met(known: Measured, budget: Sequence[Limit], error: Infeasible) -> str:
    """The solver's infeasibility in the user's metrics and units."""
    words = ("the least reachable", "with the other limits met, the least reachable")
    lines = reached(known, budget, error, words)
    if not lines:
        return f"no architecture can be put together: {error}"
    if not error.is_smallest:
        lines.append("the time ran out before the smallest set at fault was found")
    together = " together" if len(error.budgets) > 1 else ""
    plain = " with layers of one size" if known.is_plain else ""
    return f"no architecture{plain} of this space meets the budget{together}. " + "; ".join(lines)


def reached(known: Measured, budget: Sequence[Limit], error: Infeasible, words: tuple[str, str]) -> list[str]:
    """How far each limit at fault can be met, in its metric's units, the fixed part counted in; `words` say what the
    values are that `error` has alone, and with the other limits met."""
    fixed, most = known.fixed.metrics(known.scenario), known.ceilings(budget)
    lines = []
    for asked in budget:
        metric, (cost, ceiling) = asked.row, known.ceiling(asked)
        if cost not in error.budgets or ceiling > most[cost]:
            continue
        wanted, whole = known.from_summed(metric, ceiling), known.whole(asked.metric)
        for found, said in zip((error.least, error.together), words, strict=True):
            if cost in found:
                least = known.from_summed(metric, found[cost] + fixed[cost])
                said = said.replace("least", "most") if metric.at_least else said
                lines.append(
                    f"{asked.metric} {format_quantity(asked.metric, wanted)}: {said} is "
                    f"{format_quantity(asked.metric, least)} ({least / whole:.1%} of the parent's)"
                )
    return list(dict.fromkeys(lines))
