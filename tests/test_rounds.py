"""How many of SLEB's rounds a budget takes: known before any loss is."""

from collections.abc import Sequence

import pytest

from solvers.baselines.drop import Layers
from solvers.baselines.sleb import drop_one_by_one, rounds_needed
from solvers.errors import Infeasible
from solvers.problem import Option, Problem


def problem_of(ms: Sequence[float], most: float) -> tuple[Problem, tuple[Option, ...]]:
    """Whole layers that take so long each, all of which may go; and those that are the parent's own."""
    own = tuple(Option(2 * layer, 2, "kv4+ffn48", 0.0, {"ms": each}, ("kv4", "ffn48")) for layer, each in enumerate(ms))
    skips = tuple(Option(2 * layer, 2, "skip+skip", 1.0, {"ms": 0.0}, ("skip", "skip")) for layer in range(len(ms)))
    return Problem(2 * len(ms), own + skips, {"ms": most}), own


def deepest_first(removed: Sequence[int], candidates: Sequence[int]) -> list[float]:
    return [float(-layer) for layer in candidates]


def test_how_many_rounds_there_are_is_known_beforehand() -> None:
    """Where layers cost alike exactly, else at least so many; one that costs more may be saved earlier or later."""
    for most in range(2, 9):
        problem, own = problem_of(8 * [1.0], most)
        found = drop_one_by_one(problem, own, deepest_first)
        assert len(found.rounds) == rounds_needed(problem, Layers.of(problem, own, 2)) == 8 - most
    problem, own = problem_of(8 * [1.0], 1)
    with pytest.raises(Infeasible, match="with 6 layers dropped, the most possible: ms is 2, over the maximum 1"):
        rounds_needed(problem, Layers.of(problem, own, 2))


def test_layers_that_cost_unlike() -> None:
    """To get from 16 to 9: 5 and 2 at the best, of the inner layers' 1, 5, 1, 2; 2, 1 and 5 in the order it follows."""
    problem, own = problem_of([4.0, 1.0, 5.0, 1.0, 2.0, 3.0], 9.0)
    assert rounds_needed(problem, Layers.of(problem, own, 2)) == 2
    assert drop_one_by_one(problem, own, deepest_first).order == (4, 3, 2)
    problem, own = problem_of([4.0, 1.0, 5.0, 1.0, 2.0, 3.0], 6.0)
    with pytest.raises(Infeasible, match="with 4 layers dropped, the most possible: ms is 7, over the maximum 6"):
        drop_one_by_one(problem, own, lambda removed, candidates: pytest.fail("no loss is needed to know that"))


def test_a_minimum_does_not_say_how_many() -> None:
    """Whoever follows the order finds out."""
    problem, own = problem_of(8 * [1.0], 6)
    problem = Problem(problem.slots, problem.options, {"ms": 6.0}, {"ms": 5.0})
    assert rounds_needed(problem, Layers.of(problem, own, 2)) == 2
    assert len(drop_one_by_one(problem, own, deepest_first).rounds) == 2
