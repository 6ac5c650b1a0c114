"""Ways to choose an architecture, on one search and one budget, each answer held against what it really is.

Every strategy is asked with the same options, costs and limits; its answer is assembled and measured, and is a trial.
`STRATEGIES` is the list of them. Nothing that is in the store is measured again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from time import monotonic

from rich.console import Console

from cost_models.metrics import METRICS
from db import models
from db.models import now
from db.store import Store
from nas.compare.evolution import POPULATION, Dashboard, Evolved, evolve
from nas.errors import ScoreMetricError, UsageError
from nas.job.stored import request_of
from nas.job.units import Limit
from nas.solve.solve import measured, reached, solve
from nas.stages.contest import Chosen, Contest
from nas.stages.real_values import Reality
from nas.stages.refine import refined
from solvers.baselines.drop import Layers
from solvers.baselines.greedy import greedy
from solvers.baselines.max_parameters import max_parameters
from solvers.baselines.no_op_only import no_op_only
from solvers.baselines.random import random_architecture
from solvers.baselines.shortgpt import drop_layers
from solvers.baselines.sleb import drop_one_by_one, rounds_needed
from solvers.baselines.uniform import uniform
from solvers.errors import Infeasible

Strategy = Callable[[Contest], Chosen]


def _shortgpt(contest: Contest) -> Chosen:
    if not _layers(contest).droppable:
        raise Infeasible("no layer can be left out; give space.drop_blocks, or skip for attention and ffn")
    influence = contest.reality.influence()
    return Chosen(drop_layers(contest.problem, contest.own, influence, layers=contest.known.layers))


def _sleb(contest: Contest) -> Chosen:
    _check_removable(contest)
    # Measure at once the rounds that are needed in any case, then one round at a time.
    contest.reality.remove(rounds_needed(contest.problem, _layers(contest)))
    found = drop_one_by_one(contest.problem, contest.own, contest.reality.losses, layers=contest.known.layers)
    return Chosen(found.solution, found.evaluations)


def _layers(contest: Contest) -> Layers:
    return Layers.of(contest.problem, contest.own, slots_per_layer=2, layers=contest.known.layers)


def _check_removable(contest: Contest) -> None:
    """Check, before any measurement, that every inner layer can be left out. The first and the last always stay."""
    layers = _layers(contest)
    if not set(range(1, contest.known.layers - 1)) <= set(layers.droppable):
        raise Infeasible("not every inner layer can be left out; give space.drop_blocks, or skip for attention and ffn")


def _random(contest: Contest, seed: int) -> Chosen:
    """In a plain search the sizes of the layers are drawn, too."""
    found = contest.answers(partial(random_architecture, seed=seed, settings=contest.known.settings))
    return Chosen(contest.answer(found, Random(seed).choice(list(found))))


def _evolution(contest: Contest) -> Chosen:
    """In a plain search the architectures of each size of the layers are bred apart, with an equal share of the
    evaluations. If there are more sizes than evaluations, those with the largest score of a random one are left out."""
    first = contest.answers(partial(random_architecture, seed=0, settings=contest.known.settings))
    bred = sorted(first, key=lambda sizes: first[sizes].score)[: contest.evaluations]
    each, more = divmod(contest.evaluations, len(bred))
    evolved = [_evolved(contest, sizes, each + (place < more)) for place, sizes in enumerate(bred)]
    kls = contest.real([found.solution for found in evolved])
    best = evolved[kls.index(min(kls))].solution
    return Chosen(best, sum(found.evaluations for found in evolved))


def _evolved(contest: Contest, sizes: str, evaluations: int) -> Evolved:
    """The best of one question. The first generation is random, within the limits."""
    problem, search = contest.questions[sizes], contest.known.search
    seeds = range(min(POPULATION, evaluations))
    starts = [random_architecture(problem, seed, settings=contest.known.settings) for seed in seeds]
    limits = ", ".join(f"{limit.metric} {limit.text}" for limit in contest.budget)
    name = " ".join(filter(None, (f"{search.name} ({search.id}): {limits}, evolution", sizes)))
    with Dashboard(contest.store.url, name) as dashboard:
        return evolve(problem, contest.real, evaluations, starts, show=dashboard.show)


def _max_parameters(contest: Contest) -> Chosen:
    cost = METRICS["parameters"].column
    solver = partial(max_parameters, cost=cost, settings=contest.known.settings)
    return Chosen(contest.best(solver, worth=lambda found: -found.costs[cost]))


def _no_op_only(contest: Contest) -> Chosen:
    return Chosen(contest.best(partial(no_op_only, parent=contest.own, settings=contest.known.settings)))


STRATEGIES: dict[str, Strategy] = {
    "MIP": lambda contest: Chosen(solve(contest.known, contest.budget)),
    "greedy": lambda contest: Chosen(contest.best(greedy)),
    "uniform": lambda contest: contest.under_each(lambda one: Chosen(uniform(one.problem, layers=one.known.layers))),
    "max parameters": _max_parameters,
    "no-op only": lambda contest: contest.under_each(_no_op_only),
    "ShortGPT": lambda contest: contest.under_each(_shortgpt),
    "SLEB": lambda contest: contest.under_each(_sleb),
    "evolution": _evolution,
    "refine": refined,
}
"""Beside these, random architectures of the library, as many as asked.

In a plain search each keeps to its rule, that layers are of one size: uniform, ShortGPT and SLEB by what they are, the
others by answering one question for each size. An answer that does not keep to it is left out.
"""

_NOT_PLAIN = "its answer is left out: its layers are of several sizes, which space.plain excludes"


def strategies(names: Sequence[str]) -> Mapping[str, Strategy]:
    """Those of these names; all, if none is named. Raises UsageError where there is none of a name."""
    for name in names:
        if name not in STRATEGIES:
            raise UsageError(f"there is no strategy {name!r}; there are {', '.join(STRATEGIES)}")
    return {name: STRATEGIES[name] for name in names} or STRATEGIES


@dataclass(frozen=True)
class StrategyResult:
    """A strategy's answer, or why it has none.

    `of_budget` is the share it is predicted to use of the limit it comes nearest to, `of_parent` its predicted latency
    over the parent's.
    """

    strategy: str
    evaluations: int = 0
    trial: models.TrialRow | None = None
    of_budget: float = 0.0
    of_parent: float = 0.0
    why_not: str = ""

    @property
    def healed_kl(self) -> float | None:
        """The child's KL, where it was healed: one that never was has a KL of its own."""
        return self.trial.kl if self.trial is not None and self.trial.heal_tokens else None


@dataclass(frozen=True)
class Asked:
    """`budget` empty: the search's own. `evaluations` are the whole models that evolution and refining may run each,
    `seeds` how many random architectures there are; answers are healed, or timed, where that is asked. `strategies`
    are compared beside the random ones."""

    budget: tuple[Limit, ...] = ()
    evaluations: int = 100
    seeds: int = 3
    heal: bool = False
    time: bool = False
    strategies: Mapping[str, Strategy] = field(default_factory=lambda: STRATEGIES)


def compare(store: Store, search: models.SearchRow, asked: Asked, console: Console) -> list[StrategyResult]:
    """Every strategy's answer, the nearest to the parent first, then those without one.

    Raises BudgetNotMetError where nothing meets the budget, and UsageError where what is asked for cannot be had.
    """
    started, clock = now(), monotonic()
    _check(asked, search)
    known = measured(store, search)
    budget = asked.budget or known.budget
    with Reality(store, search, console) as reality:
        if asked.time:
            reality.check_machine()  # before the work rather than after
        contest = Contest(store, known, budget, reality, asked.evaluations)
        random: dict[str, Strategy] = {
            f"random, seed {seed}": partial(_random, seed=seed) for seed in range(asked.seeds)
        }
        answers = {name: _answer(contest, name, choose) for name, choose in (dict(asked.strategies) | random).items()}
        chosen = {name: answer for name, answer in answers.items() if isinstance(answer, Chosen)}
        trials = contest.trials([answer.solution for answer in chosen.values()], asked.heal)
        if asked.time:
            trials = [reality.timed(trial) for trial in trials]
        if asked.heal:
            trials = [reality.made(trial) for trial in trials]
        store.add_stage(
            models.StageRow(
                search_id=search.id, name="compare", started_at=started, seconds=monotonic() - clock,
                work_done=reality.measured,
            )
        )  # fmt: skip
    found = zip(chosen.items(), trials, strict=True)
    lines = [
        _line(contest, *answer, trial) for answer, trial in sorted(found, key=lambda pair: _known(pair[1].kl_whole))
    ]
    return lines + [StrategyResult(name, why_not=answer) for name, answer in answers.items() if isinstance(answer, str)]


def _check(asked: Asked, search: models.SearchRow) -> None:
    request = request_of(search)
    if asked.heal and not request.heals:
        raise UsageError(f"search {search.name} heals no child; compare it without --heal, or give heal in its job")
    if asked.time and not request.is_timed_here:
        raise UsageError(
            f"search {search.name} simulates its machine or was given its costs, so nothing can be timed; leave "
            "out --time"
        )


def _answer(contest: Contest, name: str, choose: Strategy) -> Chosen | str:
    """The strategy's answer, or why it has none."""
    models = contest.evaluations if choose in (_evolution, refined) else None
    try:
        with contest.reality.counting(name, models):
            answer = choose(contest)
            return answer if contest.allows(answer.solution) else _NOT_PLAIN
    except (TimeoutError, ScoreMetricError) as error:
        return str(error)
    except Infeasible as error:
        words = ("its value", "with the other limits met, its value")
        lines = reached(contest.known, contest.budget, error, words)
        rule, _, _ = str(error).partition(": ")
        return "; ".join([rule, *lines]) if lines else str(error)


def _line(contest: Contest, name: str, answer: Chosen, trial: models.TrialRow) -> StrategyResult:
    known = contest.known
    fixed, totals = known.fixed.metrics(known.scenario), answer.solution.costs
    ceilings = [known.ceiling(limit) for limit in contest.budget]
    return StrategyResult(
        strategy=name,
        evaluations=answer.evaluations,
        trial=trial,
        of_budget=max((totals[cost] + fixed[cost]) / most for cost, most in ceilings),
        of_parent=trial.predicted_latency_s / known.whole("latency"),
    )


def _known(value: float | None) -> float:
    assert value is not None
    return value
