"""Evolution: whole architectures within the limits, selected by a value that is measured of each.

This is Optuna's NSGA-II (Deb et al., 2002), one generation at a time. Each slot is a parameter, and its values are the
options that begin there. Slots are read in order: an option fills its span, and the parameters of the slots that it
covers are ignored. A proposal outside the limits is not evaluated; the nearer of two such proposals is the better one.

The same seed and the same values lead to the same generations, so a caller that keeps the values can stop and start
again. This file knows options and limits; it does not know what is evaluated, nor how.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from solvers.errors import ProblemError
from solvers.exact.shortest_path import check_tiling, score_bound
from solvers.problem import Option, Problem, Solution, total_costs

optuna.logging.set_verbosity(optuna.logging.WARNING)

POPULATION = 16
_PROPOSALS = 20
"""Proposals for each evaluation, at most: a population that has converged proposes little that is new."""

Evaluate = Callable[[Sequence[Solution]], Sequence[float]]
"""The worth of each, in their order; less is better."""
_Key = tuple[tuple[int, int, str], ...]


@dataclass(frozen=True)
class Breeding:
    """Proposals in a generation, and the seed of all chance."""

    population: int = POPULATION
    seed: int = 0


USUAL = Breeding()


@dataclass(frozen=True)
class Evolved:
    """The best that was evaluated, and how many were."""

    solution: Solution
    evaluations: int


class Dashboard:
    """The study `name` in the database at `url`, for optuna-dashboard to show. Nothing is bred from it. A context
    manager, which closes its connections.

    Optuna's tables are named otherwise than ours, its version table too (`db/migrate.py`): one database holds both.
    """

    def __init__(self, url: str, name: str):
        patient = {"timeout": 60} if url.startswith("sqlite") else {}
        self._storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": patient})
        self._name = name
        self._seen = 0

    def __enter__(self) -> Self:
        with ExitStack() as otherwise:
            otherwise.push(self.__exit__)
            self._study = optuna.create_study(storage=self._storage, study_name=self._name, load_if_exists=True)
            self._there = len(self._study.get_trials(deepcopy=False))
            otherwise.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def show(self, trials: Sequence[FrozenTrial]) -> None:
        """Add the next trials, but for those that an earlier run of the same evolution added."""
        for trial in trials:
            self._seen += 1
            if self._seen > self._there:
                self._study.add_trial(trial)


def evolve(
    problem: Problem,
    evaluate: Evaluate,
    evaluations: int,
    starts: Sequence[Solution],
    breeding: Breeding = USUAL,
    show: Callable[[Sequence[FrozenTrial]], None] = lambda _: None,
) -> Evolved:
    """The best of at most so many tilings within the limits; the first generation begins with `starts`.

    `starts` are solutions of the problem, one at least, or there might be nothing to breed from. `show` is given what
    was evaluated, a generation at a time. Raises ValueError where there is no start, or less than one evaluation,
    ProblemError for a value that is not finite.
    """
    started = time.monotonic()
    check_tiling(problem)
    if not starts or evaluations < 1:
        raise ValueError(f"evolution needs a start and an evaluation, not {len(starts)} and {evaluations}")
    at, bound = _options_by_slot(problem), score_bound(problem)
    study = optuna.create_study(
        sampler=optuna.samplers.NSGAIISampler(population_size=breeding.population, seed=breeding.seed)
    )
    for start in starts[: breeding.population]:
        study.enqueue_trial({_parameter(option.first): option.name for option in start.options})
    values: dict[_Key, float] = {}
    solutions: dict[_Key, Solution] = {}
    left = _PROPOSALS * evaluations
    while len(values) < evaluations and left > 0:
        proposals = _generation(
            problem, at, study, values.keys(), min(breeding.population, left), evaluations - len(values)
        )
        left -= len(proposals)
        new = {each.key: each for each in proposals if each.fits and each.key not in values}
        fresh = {key: Solution.of(problem, each.options, bound, 0.0, "evolution") for key, each in new.items()}
        values |= _evaluated(evaluate, fresh)
        solutions |= fresh
        told = {id(each): _tell(study, each, values) for each in proposals}
        show([told[id(each)] for each in new.values()])
    best = solutions[min(values, key=values.__getitem__)]
    return Evolved(replace(best, seconds=time.monotonic() - started), len(values))


@dataclass(frozen=True)
class _Proposal:
    """`outside` is by how much each limit is passed, in shares of it; 0 where it holds."""

    trial: optuna.Trial
    options: tuple[Option, ...]
    outside: Mapping[str, float]

    @property
    def key(self) -> _Key:
        return tuple(option.key for option in self.options)

    @property
    def fits(self) -> bool:
        return not any(self.outside.values())


def _parameter(slot: int) -> str:
    return f"slot {slot:03}"


def _options_by_slot(problem: Problem) -> dict[int, dict[str, Option]]:
    """For each slot where options begin: those after which the remaining slots can be tiled, by name."""
    found: dict[int, dict[str, Option]] = {}
    for option in sorted(problem.options, key=lambda option: -option.first):
        if option.end == problem.slots or option.end in found:
            here = found.setdefault(option.first, {})
            assert option.name not in here, f"two options {option.name} begin at slot {option.first}"
            here[option.name] = option
    return found


def _generation(
    problem: Problem,
    at: Mapping[int, Mapping[str, Option]],
    study: optuna.Study,
    known: Collection[_Key],
    size: int,
    room: int,
) -> list[_Proposal]:
    """So many proposals, or fewer, so that no more than `room` of them are to be evaluated."""
    space = {_parameter(slot): CategoricalDistribution(list(options)) for slot, options in sorted(at.items())}
    found: list[_Proposal] = []
    new: set[_Key] = set()
    while len(found) < size and len(new) < room:
        trial = study.ask(space)  # type: ignore[arg-type]
        proposal = _proposal(problem, at, trial)
        if proposal.fits and proposal.key not in known:
            new.add(proposal.key)
        found.append(proposal)
    return found


def _proposal(problem: Problem, at: Mapping[int, Mapping[str, Option]], trial: optuna.Trial) -> _Proposal:
    options: list[Option] = []
    slot = 0
    while slot < problem.slots:
        options.append(at[slot][trial.params[_parameter(slot)]])
        slot = options[-1].end
    totals = total_costs(options)
    outside = {limit.name: limit.passed(totals[limit.cost]) for limit in problem.limits}
    return _Proposal(trial, tuple(options), outside)


def _evaluated(evaluate: Evaluate, solutions: Mapping[_Key, Solution]) -> dict[_Key, float]:
    if not solutions:
        return {}
    values = dict(zip(solutions, evaluate(list(solutions.values())), strict=True))
    for key, value in values.items():
        if not math.isfinite(value):
            raise ProblemError(f"{' '.join(name for _, _, name in key)} was evaluated as {value}, not a finite number")
    return values


def _tell(study: optuna.Study, proposal: _Proposal, values: Mapping[_Key, float]) -> FrozenTrial:
    """Report values to Optuna; a proposal outside the limits gets its sum of scores, which nothing reads."""
    predicted = math.fsum(option.score for option in proposal.options)
    for name, share in proposal.outside.items():
        proposal.trial.set_constraint(name, share)
    proposal.trial.set_user_attr("options", " ".join(option.name for option in proposal.options))
    proposal.trial.set_user_attr("score", predicted)
    return study.tell(proposal.trial, values.get(proposal.key, predicted))
