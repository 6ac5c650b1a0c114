"""Evolution finds what is really best, within the limits and its evaluations, and its study can be looked at."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import optuna
import pytest
from rows import search, trial

from db.store import Store
from nas.compare.evolution import Breeding, Dashboard, Evolved, evolve
from solvers.exact import solver
from solvers.exact.shortest_path import score_bound
from solvers.problem import Option, Problem, Solution, verify

pytest_plugins = ["databases"]


def problem_of(layers: int = 4, seed: int = 0, budget: float = 0.6) -> Problem:
    """Three attentions, three FFNs and a dropped block per layer, and a fused run."""
    rng = random.Random(seed)
    options = []
    for layer in range(layers):
        for slot, names in enumerate((("kv4", "kv1", "skip"), ("ffn8", "ffn4", "skip"))):
            for name, cost in zip(names, (2.0, 1.0, 0.0), strict=True):
                options.append(Option(2 * layer + slot, 1, name, (2 - cost) * rng.random(), {"latency": cost}))
        options.append(Option(2 * layer, 2, "skip+skip", rng.uniform(1, 2), {"latency": 0.0}, ("skip", "skip")))
    options.append(Option(1, 3, "fuse(ffn8,ffn8)", 0.1, {"latency": 3.0}))
    return Problem(2 * layers, tuple(options), {"latency": budget * 4 * layers})


def start_of(problem: Problem) -> Solution:
    """The cheapest there is."""
    cheap = replace(
        problem, options=tuple(replace(o, score=o.costs["latency"] + o.span / 100) for o in problem.options)
    )
    keys = {option.key for option in solver.solve(cheap).options}
    chosen = [option for option in problem.options if option.key in keys]
    return Solution.of(problem, chosen, score_bound(problem), 0.0, "cheapest")


class Truth:
    """Scores that do not add up: what neighbours lose together is worse than its sum. Remembers what it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[Solution]] = []

    def __call__(self, solutions: Sequence[Solution]) -> list[float]:
        self.batches.append(list(solutions))
        return [self.value(solution) for solution in solutions]

    @property
    def asked(self) -> list[tuple[tuple[int, int, str], ...]]:
        return [tuple(option.key for option in each.options) for batch in self.batches for each in batch]

    @staticmethod
    def value(solution: Solution) -> float:
        scores = [option.score for option in solution.options]
        return math.fsum(scores) + math.fsum(3 * a * b for a, b in pairwise(scores))


def run(problem: Problem, truth: Truth, evaluations: int, seed: int = 0, population: int = 8) -> Evolved:
    return evolve(problem, truth, evaluations, [start_of(problem)], Breeding(population, seed))


def test_it_finds_better_ones_than_it_began_with() -> None:
    ratios = []
    for seed in range(5):
        problem, truth = problem_of(), Truth()
        found = run(problem, truth, 120, seed)
        verify(problem, found.solution)
        values = [truth.value(each) for batch in truth.batches for each in batch]
        assert found.evaluations == len(values) == len(set(truth.asked)) == 120
        assert truth.value(found.solution) == min(values)
        assert found.solution.solver == "evolution"
        assert found.solution.bound <= solver.solve(problem).score
        ratios.append(min(values) / min(values[:16]))
    assert max(ratios) < 1
    assert median(ratios) < 0.75


def test_only_what_is_within_the_limits_is_evaluated_and_never_more_than_allowed() -> None:
    problem = replace(problem_of(budget=0.3), minimums={"latency": 3.0})
    start = solver.solve(problem)
    for evaluations in (1, 5, 13):
        truth = Truth()
        found = evolve(problem, truth, evaluations, [start], Breeding(6))
        assert found.evaluations == len(truth.asked) == evaluations
        assert all(limit.holds(each.costs["latency"]) for b in truth.batches for each in b for limit in problem.limits)
        assert max(map(len, truth.batches)) <= 6
    assert truth.asked[0] == tuple(option.key for option in start.options)


def test_it_ends_where_there_is_nothing_new() -> None:
    problem = Problem(2, tuple(Option(s, 1, n, 0.0, {}) for s in range(2) for n in ("a", "b")), {})
    assert evolve(problem, Truth(), 50, [solver.solve(problem)], Breeding(4)).evaluations == 4


def test_an_option_that_leads_nowhere_is_not_proposed() -> None:
    options = (Option(0, 1, "a", 0.0, {}), Option(0, 2, "nowhere", 0.0, {}), Option(1, 2, "b", 0.0, {}))
    problem, truth = Problem(3, options, {}), Truth()
    evolve(problem, truth, 5, [solver.solve(problem)], Breeding(4))
    assert truth.asked == [((0, 1, "a"), (1, 2, "b"))]


def test_the_same_seed_breeds_the_same_and_more_evaluations_go_on() -> None:
    problem = problem_of()
    truths = [Truth() for _ in range(4)]
    for truth, evaluations, seed in zip(truths, (30, 30, 50, 30), (0, 0, 0, 1), strict=True):
        run(problem, truth, evaluations, seed)
    first, again, longer, other = (truth.asked for truth in truths)
    assert first == again == longer[:30]
    assert first != other


def test_its_study_lies_beside_our_rows(url: str) -> None:
    """In one database, whoever came first; added once, by however many runs."""
    problem = problem_of()
    names = ["tiny, evolution", "other"]
    with Store.open(url) as store:
        store.add_search(search())
        for name, evaluations in ((names[0], 12), (names[1], 4), (names[0], 20), (names[0], 20)):
            truth = Truth()
            with Dashboard(store.url, name) as dashboard:
                found = evolve(problem, truth, evaluations, [start_of(problem)], Breeding(6), dashboard.show)
        assert store.add_trial(trial()).id == 1
    with Store.open(url) as store:
        assert [kept.key for kept in store.trials()] == ["t1"]
        storage = optuna.storages.RDBStorage(store.url)
    assert sorted(optuna.get_all_study_names(storage)) == sorted(names)
    study = optuna.load_study(study_name=names[0], storage=storage)
    assert [each.value for each in study.trials] == [truth.value(each) for batch in truth.batches for each in batch]
    assert study.best_value == truth.value(found.solution)
    assert all(each.constraints == {"latency": 0.0} for each in study.trials)
    assert study.best_trial.user_attrs["options"] == " ".join(option.name for option in found.solution.options)


def test_optuna_first_then_our_rows(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/nas.db"
    with Dashboard(url, "before"):
        pass
    with Store.open(url) as store:
        assert store.add_search(search()).id == "5ea5c4"
    assert optuna.get_all_study_names(url) == ["before"]


def test_what_cannot_be_bred_says_why() -> None:
    problem = problem_of()
    with pytest.raises(ValueError, match="evolution needs a start and an evaluation, not 0 and 5"):
        evolve(problem, Truth(), 5, [])
    with pytest.raises(ValueError, match="evolution needs a start and an evaluation, not 1 and 0"):
        run(problem, Truth(), 0)
    with pytest.raises(ValueError, match=r"skip.* was evaluated as nan, not a finite number"):
        evolve(problem, lambda solutions: [math.nan for _ in solutions], 5, [start_of(problem)])
