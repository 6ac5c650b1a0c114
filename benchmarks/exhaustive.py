"""How near ways of choosing an architecture come to the true best, where every architecture was measured.

    python benchmarks/exhaustive.py SPACE.npz ... [--budgets 13] [--seeds 3] [--ways MIP refine] [--out results.json]

For each space (`exhaustive_space.py` makes them), budgets from 30 to 90 % of the parent's parameters, and of its memory
with a cache. Regret is the real KL of what a way chooses over that of the best architecture there is within the budget.
Prints a Markdown table a space: geometric mean and worst regret, how often the best was found, over budgets and seeds,
and the whole architectures evaluated for a budget. Who cannot meet a budget is left out of it.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from exhaustive_space import COSTS, Space

from nas.compare.evolution import POPULATION, Breeding, evolve
from nas.scoring.rank_correlation import spearman
from solvers.baselines.greedy import greedy
from solvers.baselines.random import random_architecture
from solvers.baselines.sleb import drop_one_by_one
from solvers.baselines.uniform import uniform
from solvers.errors import Infeasible
from solvers.exact import solver
from solvers.problem import Problem, Solution
from solvers.refine.refine import refine


@dataclass(frozen=True)
class Picked:
    """The real worth of a choice, and how many architectures the way evaluated."""

    kl: float
    evaluations: int


@dataclass(frozen=True)
class Line:
    way: str
    answered: int
    mean_regret: float
    worst_regret: float
    hits: int
    evaluations: float


Way = Callable[[Space, Problem, int], Picked]


def one(solver: Callable[[Problem], Solution]) -> Way:
    """It evaluates none."""
    return lambda space, problem, seed: Picked(kl(space, solver(problem)), 0)


def kl(space: Space, solution: Solution) -> float:
    return float(space.kl[space.place(solution)])


def refined(evaluations: int) -> Way:
    def way(space: Space, problem: Problem, seed: int) -> Picked:
        found = refine(problem, lambda solutions: [kl(space, each) for each in solutions], evaluations)
        return Picked(kl(space, found.solution), found.evaluations)

    return way


def evolved(evaluations: int) -> Way:
    """As `nas compare` does: from random architectures within the limits."""

    def way(space: Space, problem: Problem, seed: int) -> Picked:
        starts = [random_architecture(problem, POPULATION * seed + index) for index in range(POPULATION)]
        breeding = Breeding(seed=seed)
        real = evolve(problem, lambda solutions: [kl(space, each) for each in solutions], evaluations, starts, breeding)
        return Picked(kl(space, real.solution), real.evaluations)

    return way


def best_of_random(evaluations: int) -> Way:
    """The mean of the tenth of all architectures within the budget that uses most of it."""

    def way(space: Space, problem: Problem, seed: int) -> Picked:
        (limit,) = problem.limits
        totals = space.totals(limit.cost)
        within = np.flatnonzero(totals <= limit.value)
        fullest = within[np.argsort(-totals.ravel()[within], kind="stable")]
        among = space.kl.ravel()[fullest[: max(evaluations, len(within) // 10)]]
        picked = np.random.default_rng(seed).choice(among, min(evaluations, len(among)), replace=False)
        return Picked(float(picked.min()), len(picked))

    return way


def sleb(space: Space, problem: Problem, seed: int) -> Picked:
    own = [next(option for option in problem.options if option.first == slot) for slot in range(problem.slots)]

    def losses(removed: Sequence[int], candidates: Sequence[int]) -> list[float]:
        places = [
            tuple(-1 if slot // 2 in (*removed, layer) else 0 for slot in range(problem.slots)) for layer in candidates
        ]
        return [float(space.rise[place]) for place in places]

    found = drop_one_by_one(problem, own, losses)
    return Picked(kl(space, found.solution), found.evaluations)


def ways() -> dict[str, tuple[Way, bool]]:
    """By name; whether a seed means anything to it."""
    found: dict[str, tuple[Way, bool]] = {
        "MIP (sum of scores)": (one(solver.solve), False),
        "greedy": (one(greedy), False),
        "uniform": (one(uniform), False),
        "SLEB": (sleb, False),
    }
    for evaluations in (25, 50, 100, 200):
        found[f"refine, {evaluations}"] = refined(evaluations), False
    for evaluations in (100, 200):
        found[f"evolution, {evaluations}"] = evolved(evaluations), True
        found[f"best of random, {evaluations}"] = best_of_random(evaluations), True
    return found


def lines(space: Space, budgets: int, seeds: int, asked: Sequence[str]) -> list[Line]:
    problems = [space.problem(cost, float(share)) for cost in COSTS for share in np.linspace(0.3, 0.9, budgets)]
    least = [space.least(problem) for problem in problems]
    found = []
    for name, (way, is_seeded) in ways().items():
        if not name.startswith(tuple(asked)):
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        regrets, counts = [], []
        for problem, best in zip(problems, least, strict=True):
            for seed in range(seeds if is_seeded else 1):
                try:
                    picked = way(space, problem, seed)
                except Infeasible:
                    continue
                regrets.append(picked.kl / best)
                counts.append(picked.evaluations)
        mean = math.exp(math.fsum(map(math.log, regrets)) / len(regrets))
        hits = sum(regret < 1 + 1e-9 for regret in regrets)
        found.append(Line(name, len(regrets), mean, max(regrets), hits, sum(counts) / len(counts)))
    return found


def table(found: Sequence[Line]) -> str:
    head = "| way, evaluations allowed | mean regret | worst | the best found | evaluated |\n|---|---|---|---|---|"
    rows = [
        f"| {line.way} | {line.mean_regret:.4f} | {line.worst_regret:.3f} | {line.hits} of {line.answered} "
        f"| {line.evaluations:.0f} |"
        for line in found
    ]
    return "\n".join([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", type=Path, nargs="+")
    parser.add_argument("--budgets", type=int, default=13, help="for each of the two costs")
    parser.add_argument("--seeds", type=int, default=3, help="of what draws by chance")
    parser.add_argument("--ways", nargs="+", default=[""], help="only those whose names begin so")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    asked = parser.parse_args()
    found = {}
    for path in asked.spaces:
        space = Space.load(path)
        found[str(path)] = lines(space, asked.budgets, asked.seeds, asked.ways)
        rank = spearman(
            *(values[:: max(1, space.kl.size // 2000)] for values in (space.sums().ravel(), space.kl.ravel()))
        )
        print(f"\n{path}: {space.kl.size:,} architectures, Spearman of sum and KL {rank:.3f}\n", flush=True)
        print(table(found[str(path)]), flush=True)
    if asked.out:
        asked.out.write_text(
            json.dumps({name: [asdict(line) for line in each] for name, each in found.items()}, indent=1)
        )


if __name__ == "__main__":
    main()
