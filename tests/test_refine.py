"""Refining finds what sums of scores cannot, within its evaluations and the limits, and never ends worse than them."""

import math
import random
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from solvers.errors import Infeasible
from solvers.exact import solver
from solvers.exact.shortest_path import line_of, scores_of
from solvers.problem import Option, Problem, Solution, verify
from solvers.refine.interactions import Interactions
from solvers.refine.refine import refine

Key = tuple[int, int, str]
SEEDS = range(6)


class Truth:
    """Scores, and a term for some pairs of options that stand together. Remembers what it was asked."""

    def __init__(self, terms: dict[frozenset[Key], float]):
        self.terms = terms
        self.batches: list[list[Solution]] = []

    def __call__(self, solutions: Sequence[Solution]) -> list[float]:
        self.batches.append(list(solutions))
        return [self.worth(solution.options) for solution in solutions]

    def worth(self, options: Sequence[Option]) -> float:
        keys = {option.key for option in options}
        return math.fsum(o.score for o in options) + math.fsum(t for pair, t in self.terms.items() if pair <= keys)

    @property
    def asked(self) -> list[tuple[Key, ...]]:
        return [tuple(option.key for option in each.options) for batch in self.batches for each in batch]


def problem_of(seed: int, slots: int = 6, options: int = 3, limits: int = 1) -> Problem:
    rng = random.Random(seed)
    costs = [f"cost {number}" for number in range(limits)]
    found = [
        Option(
            slot, 1, f"o{index}", index * rng.uniform(0.5, 1.5), {c: (options - index) * rng.random() for c in costs}
        )
        for slot in range(slots)
        for index in range(options)
    ]
    own = [max(o.costs[c] for o in found if o.first == slot) for slot in range(slots) for c in costs[:1]]
    return Problem(slots, tuple(found), {cost: 0.5 * sum(own) for cost in costs})


def truth_of(problem: Problem, seed: int, share: float = 0.3) -> Truth:
    """Some pairs of options of different slots do worse together than apart, some better."""
    rng = random.Random(100 + seed)
    pairs = [
        frozenset((one.key, other.key))
        for one, other in product(problem.options, repeat=2)
        if one.end <= other.first and rng.random() < share
    ]
    return Truth({pair: rng.uniform(-0.5, 1.5) for pair in pairs})


def tilings(problem: Problem, slot: int = 0) -> list[tuple[Option, ...]]:
    if slot == problem.slots:
        return [()]
    begun = [option for option in problem.options if option.first == slot]
    return [(option, *rest) for option in begun for rest in tilings(problem, option.end)]


def least(problem: Problem, truth: Truth) -> float:
    """By brute force."""
    within = [
        tiling
        for tiling in tilings(problem)
        if all(limit.holds(math.fsum(o.costs[limit.cost] for o in tiling)) for limit in problem.limits)
    ]
    return min(map(truth.worth, within))


def test_it_finds_the_best_where_the_sum_of_scores_does_not() -> None:
    missed = 0
    for seed in SEEDS:
        problem = problem_of(seed, limits=1 + seed % 2)
        truth = truth_of(problem, seed, share=0.6)
        best = least(problem, truth)
        missed += truth.worth(solver.solve(problem).options) > best + 1e-9
        found = refine(problem, truth, 120)
        verify(problem, found.solution)
        assert truth.worth(found.solution.options) == pytest.approx(best, rel=1e-12), seed
    assert missed >= 5


@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_never_worse_than_the_sum_of_scores_nor_evaluates_more_than_allowed(seed: int) -> None:
    problem = problem_of(seed, slots=8, limits=2)
    additive = solver.solve(problem)
    for evaluations in (1, 2, 9, 10, 11, 35):
        truth = truth_of(problem, seed)
        found = refine(problem, truth, evaluations)
        assert found.evaluations == len(truth.asked) == len(set(truth.asked)) == evaluations
        assert max(map(len, truth.batches)) <= 10
        worths = [truth.worth(each.solution.options) for each in found.tried]
        assert worths == [each.real for each in found.tried]
        assert truth.worth(found.solution.options) == min(worths) <= truth.worth(additive.options)
        for each in found.tried:
            verify(problem, each.solution)
    assert truth.asked[0] == tuple(option.key for option in additive.options)
    assert found.tried[0].predicted == additive.score


def test_the_same_worths_bring_the_same_proposals_and_more_evaluations_go_on() -> None:
    problem = problem_of(0, slots=8)
    truths = [truth_of(problem, 0) for _ in range(3)]
    for truth, evaluations in zip(truths, (25, 25, 60), strict=True):
        refine(problem, truth, evaluations)
    first, again, longer = (truth.asked for truth in truths)
    assert first == again == longer[:25]


def test_it_ends_where_there_is_nothing_new() -> None:
    """Without limits, and with all that there is evaluated."""
    problem = Problem(2, tuple(Option(s, 1, n, 0.0, {}) for s in range(2) for n in ("a", "b")), {})
    assert refine(problem, Truth({}), 50).evaluations == 4


def test_options_that_span_slots_are_taken_and_left() -> None:
    """A run that its score makes worse than its parts, and what it does for others the best."""
    singles = [
        Option(slot, 1, name, score, {"cost": 1 - score})
        for slot in range(4)
        for name, score in (("a", 0.0), ("b", 0.5))
    ]
    run = Option(1, 2, "run", 0.4, {"cost": 0.0})
    problem = Problem(4, (*singles, run), {"cost": 3.0})
    terms = {frozenset((run.key, (slot, 1, "a"))): -0.3 for slot in (0, 3)}
    truth = Truth(terms)
    found = refine(problem, truth, 30)
    assert truth.worth(found.solution.options) == pytest.approx(least(problem, truth))
    assert run in found.solution.options


def test_the_context_of_an_architecture_tells_what_exchanges_are_worth() -> None:
    """The prediction is exact for one option, and for two it includes what the pair adds."""
    problem = problem_of(3)
    truth, line = truth_of(problem, 3), line_of(problem)
    rng = random.Random(0)
    known = [np.array([3 * slot + rng.randrange(3) for slot in range(6)]) for _ in range(12)]
    worths = [truth.worth([problem.options[i] for i in tiling]) for tiling in known]
    learnt = Interactions.of(line, scores_of(problem), known, worths)
    assert [learnt.worth(tiling) for tiling in known] == pytest.approx(worths, rel=0.01, abs=0.02)
    here = known[0]
    context = learnt.around(here)
    one, two = here.copy(), here.copy()
    one[1] = two[1] = 3 + (here[1] - 2) % 3
    two[4] = 12 + (here[4] - 11) % 3
    rise = context[one[1]] - context[here[1]]
    assert learnt.worth(one) - learnt.worth(here) == pytest.approx(rise)
    rise += context[two[4]] - context[here[4]]
    new, old = two[[1, 4]], here[[1, 4]]
    both = learnt.pairs(new, new) + learnt.pairs(old, old) - learnt.pairs(new, old) - learnt.pairs(old, new)
    assert learnt.worth(two) - learnt.worth(here) == pytest.approx(rise + both[0, 1])


def test_a_worth_that_is_not_finite_is_named() -> None:
    problem = problem_of(0)
    with pytest.raises(ValueError, match=r"o\d at slot 0 .* was evaluated as nan, not a finite number"):
        refine(problem, lambda solutions: [math.nan] * len(solutions), 5)


def test_what_cannot_be_asked_says_why() -> None:
    problem = problem_of(0)
    with pytest.raises(ValueError, match="needs at least one evaluation, not 0"):
        refine(problem, Truth({}), 0)
    with pytest.raises(Infeasible):
        refine(Problem(problem.slots, problem.options, {"cost 0": -1.0}), Truth({}), 5)
