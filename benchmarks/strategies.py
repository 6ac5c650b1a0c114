"""Which way of choosing an architecture ends with the best child, and what each part of the method is worth.

    python benchmarks/strategies.py JOB [--home FOLDER] [--out results.json]

Runs one job's search, then, on the same library, scores, costs and budget, the baselines: uniform width, random
architectures from the library that use the budget, and the block removals of ShortGPT and SLEB. Every child is healed
with the same tokens and timed against the parent, interleaved. Then the ablations, the search's own method with one
thing changed: no least squares, no blockwise distillation, scores by LM loss, pairs scored jointly. Prints two Markdown
tables.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nas.quiet  # isort: skip
import torch
from rich.console import Console

from db import models
from db.store import Store
from nas import config
from nas.cluster import Cluster
from nas.influence import block_influence
from nas.job import Job, prepare
from nas.pipeline import fill_store, search_row
from nas.realise import healing_key, made, timed
from nas.removal import loss_without
from nas.request import Request
from nas.solve import Measured, measured, solve, trial_row
from nas.stages import Shared
from solvers.problem import Infeasible, Option, Problem, Solution
from solvers.random import random_architecture
from solvers.shortgpt import drop_layers
from solvers.sleb import drop_one_by_one
from solvers.uniform import uniform

assert nas.quiet


@dataclass(frozen=True)
class Result:
    """One child."""

    arm: str
    predicted_share: float
    measured_share: float
    measured_spread: float
    score_sum: float
    kl_before_heal: float
    loss_before_heal: float
    kl: float
    loss: float
    architecture: str


def strategies(job: Job, known: Measured) -> Iterator[tuple[str, Solution]]:
    """Every way to choose, on the same problem."""
    problem = known.problem(job.request.budget)
    yield "MIP", solve(known, job.request.budget)
    text_BT = torch.from_numpy(job.tokens.calibration.copy())
    own, influence = own_options(job, problem), block_influence(job.parent, text_BT)
    without = partial(loss_without, job.parent, text_BT)
    baselines: dict[str, Callable[[], Solution]] = {
        "uniform width": lambda: uniform(problem),
        "random from library, seed 0": lambda: random_architecture(problem, seed=0),
        "random from library, seed 1": lambda: random_architecture(problem, seed=1),
        "random from library, seed 2": lambda: random_architecture(problem, seed=2),
        "ShortGPT block removal": lambda: drop_layers(problem, own, influence),
        "SLEB block removal": lambda: drop_one_by_one(problem, own, without).solution,
    }
    for name, choose in baselines.items():
        try:
            yield name, choose()
        except Infeasible as error:
            print(f"{name}: {error}", file=sys.stderr)


def own_options(job: Job, problem: Problem) -> list[Option]:
    """The parent's own option at every slot."""
    own = {(choice.first_slot, str(choice.what)) for choice in job.parent.architecture.choices()}
    return [option for option in problem.options if (option.first, option.name) in own and option.span == 1]


def changed(request: Request, section: str, **values: Any) -> Request:
    return request.model_copy(update={section: getattr(request, section).model_copy(update=values)})


def ablations(request: Request) -> dict[str, Request]:
    return {
        "least squares off": changed(request, "distill", least_squares=False),
        "BLD off": changed(request, "distill", tokens=0),
        "least squares and BLD off": changed(request, "distill", tokens=0, least_squares=False),
        "scores by LM loss": changed(request, "score", metric="lm_loss"),
        "pairs scored jointly": changed(request, "space", pairs=True),
    }


class Bench:
    """One store, one cluster, and the results so far."""

    def __init__(self, store: Store, cluster: Cluster, console: Console):
        self._store, self._cluster, self._console = store, cluster, console

    def measured(self, request: Request) -> tuple[Job, Measured, Shared]:
        job = prepare(request)
        self._store.add_search(search_row(job, {}))
        shared = Shared(job, self._cluster)
        job = fill_store(job, self._store, self._cluster, shared, self._console)
        return job, measured(self._store, self._store.find_search(job.id), request.score.metric), shared

    def real(self, arm: str, job: Job, known: Measured, shared: Shared, solution: Solution) -> Result:
        self._console.print(f"{arm} ...")
        trial = self._store.add_trial(trial_row(known, solution, job.request.budget, healing_key(job)))
        trial = timed(job, self._store, self._cluster, shared, trial, self._console)
        trial = made(job, self._store, self._cluster, shared, trial, self._console)
        return result(arm, known, trial)


def result(arm: str, known: Measured, trial: models.Trial) -> Result:
    measured_columns = (trial.latency_ratio, trial.latency_spread, trial.kl_before_heal, trial.lm_loss_before_heal)
    ratio, spread, kl_before, loss_before = (float(value or 0) for value in measured_columns)
    return Result(
        arm, trial.predicted_latency_s / known.parent_totals()["latency_s"], ratio, spread, trial.score, kl_before,
        loss_before, float(trial.kl or 0), float(trial.lm_loss or 0), trial.architecture,
    )  # fmt: skip


def table(results: list[Result]) -> str:
    columns = (
        "latency predicted",
        "measured",
        "sum of scores",
        "KL before heal",
        "loss before",
        "KL healed",
        "loss healed",
    )
    head = f"| arm | {' | '.join(columns)} |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for r in results:
        lines.append(
            f"| {r.arm} | {r.predicted_share:.1%} | {r.measured_share:.1%} ± {r.measured_spread:.1%} "
            f"| {r.score_sum:.3f} "
            f"| {r.kl_before_heal:.3f} | {r.loss_before_heal:.3f} | {r.kl:.4f} | {r.loss:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--home", type=Path, help="where library and database live; the job's own by default")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--only", choices=("strategies", "ablations"), help="one of the two tables")
    arguments = parser.parse_args()
    request = config.load(arguments.job)
    if arguments.home:
        request = request.model_copy(update={"home": arguments.home.resolve()})
    console = Console(stderr=True)
    found: dict[str, list[Result]] = {}
    with Store.open(str(request.home / "nas.db")) as store, Cluster() as cluster:
        bench = Bench(store, cluster, console)
        job, known, shared = bench.measured(request)
        chosen = list(strategies(job, known))
        if arguments.only != "ablations":
            found["strategies"] = [bench.real(arm, job, known, shared, solution) for arm, solution in chosen]
            print(table(found["strategies"]), flush=True)
        if arguments.only != "strategies":
            found["ablations"] = [bench.real("as published here", job, known, shared, chosen[0][1])]
            for arm, variation in ablations(request).items():
                other = bench.measured(variation)
                solution = solve(other[1], variation.budget)
                found["ablations"].append(bench.real(arm, *other, solution))
            print(table(found["ablations"]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({k: [asdict(r) for r in v] for k, v in found.items()}, indent=1))


if __name__ == "__main__":
    main()
