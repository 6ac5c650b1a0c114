"""How much CPU time the exact solver takes, beside plain PuLP with CBC and with HiGHS on the same instances.

    python benchmarks/solver.py [--sizes 80x54x3 126x200x3 126x400x4] [--seeds 5] [--limit 120] [--out results.json]

Instances are of three kinds: additive (a layer's option is an attention and an FFN whose costs add up and whose scores
rise convexly, more in some layers than in others), correlated (scores follow costs, with noise) and independent (scores
and costs have nothing to do with each other). The budgets are 60 % of the parent's costs. All solve to the same proven
gap, in turn, in one process; a run that does not prove it within the limit counts
what it used by then, and is marked.
CPU seconds are those of the process and its children. The answers' scores are compared.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import pulp  # type: ignore[import-untyped]
from numpy.typing import NDArray

from solvers.exact.highs import let_it_greet
from solvers.exact.settings import Settings
from solvers.exact.solver import solve as solve_exactly
from solvers.problem import Option, Problem
from solvers.queries.pareto import front
from solvers.queries.pool import pool

Numbers = NDArray[np.float64]
KINDS = ("additive", "correlated", "independent")
SPANS = {400: 200}
"""Options over several layers, by the options of a layer."""


@dataclass(frozen=True)
class Run:
    """One solver on one instance. `gap` is what it proved, None where that is not known."""

    solver: str
    kind: str
    size: str
    seed: int
    cpu_s: float
    score: float | None
    gap: float | None
    proven: bool


def instance(kind: str, layers: int, names: int, costs: int, seed: int, share: float = 0.6) -> Problem:
    """One slot a layer; the first option of each is the parent's own: score 0, and the most of every cost."""
    rng = np.random.default_rng(seed)
    if kind == "additive":
        score_LN, cost_LNC = _additive(rng, layers, names, costs)
    else:
        cost_LNC = rng.uniform(0, 1, (layers, names, costs))
        harm_L1 = rng.lognormal(0, 1, (layers, 1))
        near = rng.uniform(0.8, 1.2, (layers, names)) * (1 - cost_LNC.mean(2))
        score_LN = harm_L1 * (near if kind == "correlated" else rng.uniform(0, 1, (layers, names)))
        cost_LNC[:, 0], score_LN[:, 0] = 1, 0
    named = [f"c{index}" for index in range(costs)]
    options = [
        Option(
            layer,
            1,
            f"o{name}",
            float(score_LN[layer, name]),
            dict(zip(named, cost_LNC[layer, name].tolist(), strict=True)),
        )
        for layer in range(layers)
        for name in range(names)
    ]
    for number in range(SPANS.get(names, 0)):
        first, span = int(rng.integers(0, layers - 4)), int(rng.integers(2, 5))
        score = float(score_LN[first : first + span].max(1).sum() * rng.uniform(0.1, 0.6))
        used_C = span * rng.uniform(0.2, 0.7, costs)
        options.append(Option(first, span, f"run{number}", score, dict(zip(named, used_C.tolist(), strict=True))))
    whole = cost_LNC[:, 0].sum(0)
    return Problem(layers, tuple(options), dict(zip(named, (share * whole).tolist(), strict=True)))


def _additive(
    rng: np.random.Generator, layers: int, names: int, costs: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    attentions = next(count for count in (6, 8, 5, 4) if names % count == 0)
    shares_A, shares_F = np.linspace(1, 0, attentions), np.linspace(1, 0, names // attentions)
    cost_AC = 0.4 * shares_A[:, None] * rng.uniform(0.8, 1.2, (attentions, costs))
    cost_FC = 0.6 * shares_F[:, None] * rng.uniform(0.8, 1.2, (len(shares_F), costs))
    cost_NC = (cost_AC[:, None] + cost_FC[None]).reshape(-1, costs)
    harm_LA, harm_LF = rng.lognormal(0, 1, (2, layers, 1, 1))
    score_LN = harm_LA * ((1 - shares_A) ** 2)[:, None] + harm_LF * ((1 - shares_F) ** 2)[None]
    score_LN = (score_LN * rng.uniform(0.9, 1.1, score_LN.shape)).reshape(layers, -1)
    return score_LN, np.tile(cost_NC, (layers, 1, 1))


def cpu_s() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def ours(problem: Problem, gap: float, limit_s: float) -> tuple[float | None, float | None]:
    try:
        found = solve_exactly(problem, Settings(gap, limit_s))
    except TimeoutError:
        return None, None
    return found.score, found.gap


def plain(engine: str) -> Callable[[Problem, float, float], tuple[float | None, float | None]]:
    """The program that anyone with PuLP would write."""

    def solve(problem: Problem, gap: float, limit_s: float) -> tuple[float | None, float | None]:
        model = pulp.LpProblem("plain", pulp.LpMinimize)
        chosen = [model.add_variable(f"x{index}", cat=pulp.LpBinary) for index in range(len(problem.options))]
        model += pulp.lpSum(option.score * x for option, x in zip(problem.options, chosen, strict=True))
        covering: list[list[pulp.LpVariable]] = [[] for _ in range(problem.slots)]
        for option, x in zip(problem.options, chosen, strict=True):
            for slot in range(option.first, option.end):
                covering[slot].append(x)
        for variables in covering:
            model += pulp.lpSum(variables) == 1
        for cost, most in problem.maximums.items():
            model += (
                pulp.lpSum(option.costs[cost] * x for option, x in zip(problem.options, chosen, strict=True)) <= most
            )
        started = time.monotonic()
        common = {"msg": False, "gapRel": gap, "timeLimit": limit_s, "threads": 1}
        model.solve(pulp.HiGHS(**common) if engine == "highs" else pulp.PULP_CBC_CMD(**common))
        if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
            return None, None
        score = sum(option.score for option, x in zip(problem.options, chosen, strict=True) if round(x.value() or 0))
        # Both call what they had when the time was up optimal at times.
        in_time = model.sol_status == pulp.LpSolutionOptimal and time.monotonic() - started < limit_s
        if engine == "highs":
            return score, model.solverModel.getInfo().mip_gap
        return score, gap if in_time else None

    return solve


SOLVERS = {"ours": ours, "PuLP + CBC": plain("cbc"), "PuLP + HiGHS": plain("highs")}


def measured(sizes: Sequence[str], seeds: int, gap: float, limit_s: float, names: Sequence[str]) -> list[Run]:
    found = []
    for size in sizes:
        layers, options, costs = map(int, size.split("x"))
        for kind in KINDS:
            for seed in range(seeds):
                problem = instance(kind, layers, options, costs, seed)
                for name in names:
                    before = cpu_s()
                    score, proven = SOLVERS[name](problem, gap, limit_s)
                    run = Run(
                        name, kind, size, seed, cpu_s() - before, score, proven,
                        proven is not None and proven <= gap * (1 + 1e-6),
                    )  # fmt: skip
                    found.append(run)
                    print(run, flush=True)
    return found


def table(runs: Sequence[Run]) -> str:
    """Medians over the seeds, and ours against the better of the others."""
    lines = ["| size | kind | solver | CPU s | proven gap | proven in time |", "|---|---|---|---|---|---|"]
    groups = dict.fromkeys((run.size, run.kind, run.solver) for run in runs)
    for size, kind, solver in groups:
        some = [run for run in runs if (run.size, run.kind, run.solver) == (size, kind, solver)]
        gaps = [run.gap for run in some if run.gap is not None]
        shown = f"{median(gaps):.1e}" if gaps else "unknown"
        lines.append(
            f"| {size} | {kind} | {solver} | {median(run.cpu_s for run in some):.2f} | {shown} "
            f"| {sum(run.proven for run in some)} of {len(some)} |"
        )
    for size in dict.fromkeys(run.size for run in runs):
        ratios = [ratio for kind in KINDS if (ratio := _speed_up(runs, size, kind)) is not None]
        if ratios:
            lines.append(f"\n{size}: {', '.join(f'{r:.1f}x' for r in ratios)} by kind, median {median(ratios):.1f}x")
    return "\n".join(lines)


def _speed_up(runs: Sequence[Run], size: str, kind: str) -> float | None:
    """The better of the others' median CPU time over ours."""
    times: dict[str, list[float]] = {}
    for run in runs:
        if (run.size, run.kind) == (size, kind):
            times.setdefault(run.solver, []).append(run.cpu_s)
    others = [median(values) for solver, values in times.items() if solver != "ours"]
    return min(others) / median(times["ours"]) if others and "ours" in times else None


def sweeps(seeds: int, limit_s: float, apart: int) -> str:
    """A front of 50 points, and ten solutions so many slots apart, of 80 x 54: median CPU seconds, and worst gap."""
    lines = [
        f"| kind | front of 50 points | largest gap | ten solutions {apart} slots apart | largest gap |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        took: list[tuple[float, float]] = []
        gaps: list[tuple[float, float]] = []
        for seed in range(seeds):
            problem = instance(kind, 80, 54, 3, seed)
            before = cpu_s()
            points = front(problem, "c0", 50, Settings(1e-4, limit_s))
            between = cpu_s()
            diverse = list(islice(pool(problem, Settings(1e-4, limit_s), apart=apart), 10))
            took.append((between - before, cpu_s() - between))
            gaps.append((max(one.gap for one in points), max(one.gap for one in diverse)))
            print(kind, seed, took[-1], gaps[-1], flush=True)
        (fronts, pools), (front_gaps, pool_gaps) = zip(*took, strict=True), zip(*gaps, strict=True)
        lines.append(
            f"| {kind} | {median(fronts):.2f} | {max(front_gaps):.1e} | {median(pools):.2f} | {max(pool_gaps):.1e} |"
        )
    return "\n".join(lines)


def first_answers(sizes: Sequence[str], seeds: int) -> str:
    """How long until an answer is known to be within 1 % of the best, the problem's making apart: the worst by kind."""
    lines = ["| size | kind | CPU s to a proven gap under 1 % |", "|---|---|---|"]
    for size in sizes:
        layers, options, costs = map(int, size.split("x"))
        for kind in KINDS:
            took = []
            for seed in range(seeds):
                problem = instance(kind, layers, options, costs, seed)
                before = cpu_s()
                assert solve_exactly(problem, Settings(gap=0.01)).gap <= 0.01
                took.append(cpu_s() - before)
            lines.append(f"| {size} | {kind} | {max(took):.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["80x54x3", "126x200x3", "126x400x4"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--gap", type=float, default=1e-4)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for each run of a solver")
    parser.add_argument("--solvers", nargs="+", choices=list(SOLVERS), default=list(SOLVERS))
    parser.add_argument("--apart", type=int, default=4, help="slots in which diverse solutions differ")
    parser.add_argument("--sweeps", action="store_true", help="the front and the diverse solutions, and nothing else")
    parser.add_argument("--first", action="store_true", help="time to a proven gap under 1 %%, and nothing else")
    parser.add_argument("--out", type=Path, help="write every run as JSON")
    asked = parser.parse_args()
    let_it_greet()
    if asked.sweeps:
        print(sweeps(asked.seeds, asked.limit, asked.apart))
        return
    if asked.first:
        print(first_answers(asked.sizes, asked.seeds))
        return
    runs = measured(asked.sizes, asked.seeds, asked.gap, asked.limit, asked.solvers)
    print("\n" + table(runs))
    if asked.out:
        asked.out.write_text(json.dumps([asdict(run) for run in runs], indent=1))


if __name__ == "__main__":
    main()
