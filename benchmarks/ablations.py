"""The worth of each part of the method.

    python benchmarks/ablations.py JOB [--home FOLDER] [--out results.json]

Runs one job's search, then the search's own method with one thing changed: no least squares, no blockwise distillation,
scores by LM loss, pairs scored jointly. Every child is healed with the same tokens and timed against the parent,
interleaved. Prints a Markdown table. Other ways to choose, on one library, are `nas compare`'s.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nas.terminal.quiet  # isort: skip
from rich.console import Console

from db import models
from db.store import Store
from nas.cluster.tasks import Cluster
from nas.job import config
from nas.job.request import Request
from nas.pipeline import fill_store, search_row
from nas.solve.solve import Measured, measured, solve, trial_row
from nas.stages.child import healing_key, made, timed
from nas.stages.context import Context
from nas.stages.prepare import prepare
from solvers.problem import Solution

assert nas.terminal.quiet


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

    def measured(self, request: Request) -> tuple[Context, Measured]:
        job = prepare(request)
        self._store.add_search(search_row(job, {}))
        context = fill_store(Context.of(job, self._store, self._cluster, self._console))
        return context, measured(self._store, self._store.find_search(context.job.id), request.score.metric)

    def real(self, arm: str, context: Context, known: Measured, solution: Solution) -> Result:
        self._console.print(f"{arm} ...")
        job = context.job
        trial = self._store.add_trial(trial_row(known, solution, job.request.budget, healing_key(job)))
        trial = made(context, timed(context, trial))
        return result(arm, known, trial)


def result(arm: str, known: Measured, trial: models.TrialRow) -> Result:
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
    arguments = parser.parse_args()
    request = config.load(arguments.job)
    if arguments.home:
        request = request.model_copy(update={"home": arguments.home.resolve()})
    console = Console(stderr=True)
    variations = {"as it is": request} | ablations(request)
    found: list[Result] = []
    with Store.open(str(request.home / "nas.db")) as store, Cluster() as cluster:
        bench = Bench(store, cluster, console)
        for arm, variation in variations.items():
            context, known = bench.measured(variation)
            found.append(bench.real(arm, context, known, solve(known, variation.budget)))
    print(table(found))
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(result) for result in found], indent=1))


if __name__ == "__main__":
    main()
