"""A strategy of your own: `cheapest`, the least latency within the limits. See docs/adding/strategy.md.

    python examples/adding/a_strategy.py SEARCH parameters=75%

The script adds the strategy to the table of its own process and compares all strategies on a finished search.
"""

import sys
import time
from dataclasses import replace
from functools import partial

import nas
from nas.compare.strategies import STRATEGIES
from nas.stages.contest import Chosen, Contest
from solvers.exact import solver
from solvers.exact.shortest_path import check_tiling, score_bound
from solvers.problem import Problem, Solution


def cheapest(problem: Problem, cost: str) -> Solution:
    """The solution with the least total of `cost`. Raises Infeasible if the limits cannot be met together."""
    started = time.monotonic()
    check_tiling(problem)
    priced = replace(problem, options=tuple(replace(each, score=each.costs[cost]) for each in problem.options))
    own = {option.key: option for option in problem.options}
    chosen = [own[option.key] for option in solver.solve(priced).options]
    return Solution.of(problem, chosen, score_bound(problem), time.monotonic() - started, "cheapest")


def fastest(contest: Contest) -> Chosen:
    return Chosen(contest.best(partial(cheapest, cost="latency_s"), worth=lambda found: found.costs["latency_s"]))


STRATEGIES["cheapest"] = fastest


def main() -> None:
    search, budget = sys.argv[1:]
    for line in nas.load(search).compare(budget, evaluations=2, seeds=1):
        print(f"{line.strategy}: {line.why_not if line.trial is None else f'KL {line.trial.kl_whole:.4f}'}")


if __name__ == "__main__":
    main()
