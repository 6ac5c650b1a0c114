"""Past additivity: architectures evaluated whole, what their sums of scores missed learnt, and solved for again.

Puzzle (arXiv 2411.19146) assembles by a sum of scores, each of one option alone in the parent; what options do to each
other it cannot see. Here whole architectures are evaluated, a round at a time. Each round tells more of the terms of
pairs of options (`interactions.py`), re-scores all options in the context of the best architecture so far, and asks
the exact solver for the best within so many slots of it, the trust region. The rest of the round are the best predicted
of what one or two exchanges make of the best few.

Exact is every answer of the solver to the scores it is given: its first is the additive optimum, which is evaluated
before all others, so that what comes out is never worse. Not exact is the rest: the terms are estimates, a step leaves
out the pairs of options that both change in it (exchanges do not), and nothing proves that there is no better. This
file does not know what is evaluated, nor how.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from solvers.errors import ProblemError
from solvers.exact import solver
from solvers.exact.minimise import minimise
from solvers.exact.program import Program, Row
from solvers.exact.settings import DEFAULT, Settings
from solvers.exact.shortest_path import Indices, Weights, scores_of
from solvers.problem import Problem, Solution
from solvers.refine.interactions import Interactions

BATCH = 10
"""Evaluations a round."""
_RADIUS = 0.4
"""The trust region, as a share of the slots."""
_CENTRES = 5
"""The best evaluated, of which exchanges are proposed; more where these have no new ones left."""
_MOST_PAIRED = 600
"""Exchanges looked at two by two, at most: those of least weight once the limits are priced."""
_STEP_GAP = 1e-3
"""The gap of a step: its scores are estimates."""

Evaluate = Callable[[Sequence[Solution]], Sequence[float]]
"""The worth of each, in their order; less is better."""
_Tiling = tuple[int, ...]


@dataclass(frozen=True)
class Tried:
    """An architecture that was evaluated: what it was predicted to be worth when proposed, and what it is."""

    solution: Solution
    predicted: float
    real: float


@dataclass(frozen=True)
class Refined:
    """The best that was evaluated, and all that were, in their order."""

    solution: Solution
    tried: tuple[Tried, ...]

    @property
    def evaluations(self) -> int:
        return len(self.tried)


def refine(
    problem: Problem, evaluate: Evaluate, evaluations: int, settings: Settings = DEFAULT, batch: int = BATCH
) -> Refined:
    """The best of at most so many tilings within the limits, `batch` of them evaluated at a time, none twice.

    The gap and the progress of the settings are for the first answer, by the scores as they are; time limit and memory
    for each run of the solver. The same worths bring the same proposals, so whoever evaluates and remembers can stop
    and begin again. Raises Infeasible where the limits cannot be met together, SolverTimeoutError where nothing was
    found in the time, and ValueError where there is less than one evaluation, or a worth that is not finite.
    """
    started = time.monotonic()
    if evaluations < 1 or batch < 1:
        raise ValueError(f"refining needs at least one evaluation, not {evaluations}, {batch} at a time")
    first = solver.solve(problem, settings)
    step = replace(settings, gap=_STEP_GAP, progress=None)
    place = {option.key: index for index, option in enumerate(problem.options)}
    program = Program.of(problem, scores_of(problem), problem.limits)
    tried: dict[_Tiling, Tried] = {}
    begun = tuple(place[option.key] for option in first.options)
    new = {begun: first.score}
    while new:
        solutions = [
            Solution.of(problem, [problem.options[index] for index in tiling], first.bound, 0.0, "refine")
            for tiling in new
        ]
        for (tiling, predicted), solution, real in zip(new.items(), solutions, evaluate(solutions), strict=True):
            if not math.isfinite(real):
                raise ProblemError(
                    f"{' '.join(map(str, solution.options))} was evaluated as {real}, not a finite number"
                )
            tried[tiling] = Tried(solution, predicted, real)
        room = min(batch - len(tried) % batch, evaluations - len(tried))
        worths = {tiling: each.real for tiling, each in tried.items()}
        new = _proposed(program, worths, room, step)
    best = min(tried.values(), key=lambda each: each.real)
    return Refined(replace(best.solution, seconds=time.monotonic() - started), tuple(tried.values()))


def _proposed(program: Program, worths: dict[_Tiling, float], count: int, settings: Settings) -> dict[_Tiling, float]:
    """At most so many tilings that were not evaluated, and what they are predicted to be worth."""
    if not count:
        return {}
    tilings = [np.array(tiling) for tiling in worths]
    learnt = Interactions.of(program.line, program.weights, tilings, list(worths.values()))
    ranked = sorted(worths, key=worths.__getitem__)
    step, prices = _step(program, learnt, np.array(ranked[0]), settings)
    found = {} if step in worths else {step: learnt.worth(np.array(step))}
    near: dict[_Tiling, float] = {}
    for place, centre in enumerate(ranked):
        if place >= _CENTRES and len(near) >= count:
            break
        exchanged = _exchanged(program, learnt, np.array(centre), prices, count + len(worths))
        near |= {tiling: worth for tiling, worth in exchanged if tiling not in worths and tiling not in found}
    return found | dict(sorted(near.items(), key=lambda each: (each[1], each[0]))[: count - len(found)])


def _step(program: Program, learnt: Interactions, centre: Indices, settings: Settings) -> tuple[_Tiling, Weights]:
    """The best in the context of `centre` and near it, and the prices of the limits there; `centre` itself where time
    or memory ran out."""
    line = program.line
    unlike = (line.ends - line.firsts).astype(np.float64)
    unlike[centre] = 0
    near = Row(unlike, max(2.0, round(_RADIUS * line.slots)))
    asked = replace(program, weights=learnt.around(centre), rows=(*program.rows, near))
    answer = minimise(asked, settings)
    assert answer.outcome != "infeasible", "what was evaluated is within the limits"
    return answer.chosen or tuple(centre.tolist()), np.array(answer.prices[: len(program.rows)])


def _exchanged(
    program: Program, learnt: Interactions, centre: Indices, prices_R: Weights, count: int
) -> Iterator[tuple[_Tiling, float]]:
    """The best `count` within the limits that one or two exchanges make of `centre`, and their predicted worths.

    Legend of shape suffixes: E exchanges, X the options of the centre, R rows.
    """
    other_E, place_E = program.line.steps.exchanges(centre)
    weights = learnt.around(centre)
    charged = weights + sum(price * row.values for price, row in zip(prices_R, program.rows, strict=True))
    rise_E = charged[other_E] - charged[centre[place_E]]
    least = np.sort(np.argsort(rise_E, kind="stable")[:_MOST_PAIRED])
    other_E, place_E = other_E[least], place_E[least]
    own_E = centre[place_E]
    gain_E = weights[other_E] - weights[own_E]
    between = learnt.pairs
    gain_EE = gain_E[:, None] + gain_E + between(other_E, other_E) + between(own_E, own_E)
    gain_EE -= between(other_E, own_E) + between(own_E, other_E)
    np.fill_diagonal(gain_EE, gain_E)
    allowed_EE = np.triu(place_E[:, None] != place_E, k=1) | np.eye(len(other_E), dtype=np.bool_)
    for row in program.rows:
        more_E = row.values[other_E] - row.values[own_E]
        more_EE = more_E[:, None] + more_E
        np.fill_diagonal(more_EE, more_E)
        allowed_EE &= more_EE <= row.most + row.tolerance - row.values[centre].sum()
    ones, others = np.nonzero(allowed_EE)
    worth = learnt.worth(centre)
    for index in np.argsort(gain_EE[ones, others], kind="stable")[:count].tolist():
        made = centre.copy()
        for exchange in (ones[index], others[index]):
            made[place_E[exchange]] = other_E[exchange]
        if program.holds(made):
            yield tuple(made.tolist()), worth + float(gain_EE[ones[index], others[index]])
