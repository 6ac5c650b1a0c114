"""The report: one HTML file that opens offline and shows the request, the answer and the measurements behind it. This
file collects the sections from the store and passes them to the template. Every value is a row, or computed from rows;
the front is solved again. It knows the sections, and not how they are drawn.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from blocklib.block import Architecture, Choice
from cost_models.metrics import LATENCY, Metric
from db import models
from db.models import now
from db.store import Store
from nas.errors import UsageError
from nas.files.output import write_whole
from nas.job.stored import request_of, scenario_in
from nas.job.units import Limit, format_quantity, said_budget
from nas.report import distillation
from nas.report.additivity import ScoreAdditivity, additivity
from nas.report.agreement import Agreement, agreement
from nas.report.dependency import dependency_map
from nas.report.drawing import drawing
from nas.report.heatmap import heatmap
from nas.report.options import offers
from nas.report.plots import additivity_figure, agreement_figure, curves_figure, inlined
from nas.report.request import budget_lines, budget_of, caches, facts
from nas.report.trade_off import trade_off
from nas.solve.budget_loop import uncertainty
from nas.solve.explain import Explained
from nas.solve.plain_price import PlainPrice, with_real_kls
from nas.solve.solve import BY_EVALUATION, measured
from nas.solve.summary import summary
from nas.solve.whole_times import cost_check
from nas.view.cost_check import CostCheckLines, cost_check_lines
from nas.view.evaluation import Evaluation, harnesses
from nas.view.table import comparison


def write_report(store: Store, search: models.SearchRow, path: Path, chosen: models.TrialRow | None = None) -> Path:
    """Write the report of `search` to `path`, whole or not at all, and return it. Makes the folder.

    `chosen` is the trial shown beside the parent; None: the latest one measured, else the latest. A search without a
    trial is reported as far as it got. Raises UsageError where `chosen` is another search's, OSError where the file
    cannot be written.
    """
    if chosen is not None and chosen.search_id != search.id:
        raise UsageError(
            f"trial {chosen.id} is not one of search {search.name} ({search.id}), but of {chosen.search_id}"
        )
    every = store.trials(search.id)
    # The hundreds of proposals of one strategy would hide the other trials.
    trials = [trial for trial in every if trial.solver not in BY_EVALUATION or _is_measured(trial)]
    sections = _sections(store, search, trials, chosen or _latest(trials)) | _additive(additivity(every))
    page = environment().get_template("report.html.j2").render(sections)
    return write_whole(path, page.encode())


def _latest(trials: Sequence[models.TrialRow]) -> models.TrialRow | None:
    """The latest trial that was built; else the latest that was timed, although another was built; else the latest of
    all."""
    built = [trial for trial in trials if trial.kl is not None]
    return next(reversed(built or [trial for trial in trials if _is_measured(trial)] or trials), None)


def _is_measured(trial: models.TrialRow) -> bool:
    return trial.latency_s is not None or trial.kl is not None


def _sections(
    store: Store, search: models.SearchRow, trials: Sequence[models.TrialRow], chosen: models.TrialRow | None
) -> dict[str, Any]:
    """The values that the template shows, by the names it uses."""
    offered, budget = store.options(search.id), budget_of(search, chosen)
    options = [one for one in offered if Choice.parse(one.option.choice).role != "cache"]
    child = Architecture.parse(chosen.architecture) if chosen else None
    metric = request_of(search).metric
    distillations = distillation.distillations(options)
    panels = distillation.panels(distillations)
    agreed = agreement(search, trials)
    evaluations = [Evaluation.of(row) for row in store.evaluations(chosen.child_key)] if chosen else []
    return {
        "search": search,
        "chosen": chosen,
        "written_at": now(),
        "facts": (*facts(search, budget), *caches(offered, metric)),
        "budget": budget_lines(search, chosen) if chosen else (),
        "comparison": comparison(search, chosen) if chosen else (),
        "evaluations": evaluations,
        "harnesses": harnesses(evaluations),
        "drawing": drawing(Architecture.parse(search.parent_architecture), child) if child else (),
        "stored_tables": _stored_tables(child) if child else "",
        "trade_off": trade_off(store, search, budget, trials, chosen),
        "uncertainty": uncertainty(chosen) if chosen else "",
        "explained": Explained.of(chosen) if chosen else None,
        "plain_price": PlainPrice.of(with_real_kls(store, chosen)) if chosen else None,
        "agreement": agreed,
        "agreement_plot": _agreement_plot(agreed),
        "sums": _sums_of_costs(store, search),
        "heatmap": heatmap(options, metric, child),
        "metric": metric,
        "dependency": dependency_map(search.dependency, child),
        "offers": offers(options, metric, _cost_asked(budget), scenario_in(search), child),
        "cost_asked": _cost_asked(budget).name,
        "distilled": distillation.lines(distillations),
        "healing": _healing(chosen) if chosen else None,
        "curves": inlined(curves_figure(panels), "training loss against tokens, by kind") if panels else None,
        "stages": _stage_lines(store.stages(search.id)),
        "failures": store.failures(search.id),
        "trials": trials,
        "request": json.dumps(search.request, indent=2, ensure_ascii=False),
    }


def _healing(chosen: models.TrialRow) -> str | None:
    """The losses of healing, drawn; None where the child was not healed, or before losses were kept."""
    if not chosen.heal_curve or len(chosen.heal_curve) < 2:
        return None
    return inlined(curves_figure([distillation.healing_panel(chosen.heal_curve)]), "loss of healing against tokens")


def _stored_tables(child: Architecture) -> str:
    """The precisions of embedding and head, in words; empty if they have none of their own."""
    names = {"tables": "embedding and head", "embedding": "embedding", "head": "head"}
    return ", ".join(f"{names[table.kind]}: {table.precision}" for table in child.tables)


def _sums_of_costs(store: Store, search: models.SearchRow) -> CostCheckLines | None:
    """None if no whole architecture of the search was timed."""
    rows = store.whole_times(search.id)
    found = cost_check(measured(store, search), rows) if rows else None
    return None if found is None else cost_check_lines(found)


def _cost_asked(budget: Sequence[Limit]) -> Metric:
    """The metric that a solver sums for the first limit; latency where there is no limit."""
    return budget[0].row.summed if budget else LATENCY


def _additive(found: ScoreAdditivity | None) -> dict[str, Any]:
    """Sums of scores against real KLs, drawn if there are enough points to see a trend."""
    figure = None
    if found is not None and found.spearman is not None:
        figure = inlined(additivity_figure(found.pairs), "real KL against sum of scores, a dot an architecture")
    return {"additivity": found, "additivity_plot": figure}


def _agreement_plot(agreed: Agreement | None) -> str | None:
    """A plot, if there are enough points to see a trend."""
    if agreed is None or (agreed.latency_spearman is None and agreed.score_spearman is None):
        return None
    return inlined(agreement_figure(agreed.latency, agreed.score), "measured against predicted, a point per trial")


@dataclass(frozen=True)
class StageLine:
    """A stage over all runs of the search. Its name says what it does; `work` says how much was computed."""

    name: str
    runs: int
    seconds: float
    work: str
    last: datetime


_STAGES = {
    "depend": ("measure which blocks depend on each other", "matrix", "matrices"),
    "distil": ("distil subblocks from the parent", "subblock", "subblocks"),
    "round": ("round parts into their precisions", "part", "parts"),
    "score": ("score options", "option", "options"),
    "measure": ("measure costs", "shape", "shapes"),
    "solve": ("solve, and time the answer whole", "architecture timed", "architectures timed"),
    "refine": ("refine by whole architectures", "architecture", "architectures"),
    "compare": ("compare strategies", "architecture", "architectures"),
    "heal": ("heal and evaluate the child", "child", "children"),
    "export": ("export the child and load it again", "", ""),
}
"""A description of each stage, and its unit: one, and several of them."""


def _stage_lines(stages: Sequence[models.StageRow]) -> tuple[StageLine, ...]:
    """In the order the stages first ran."""
    named: dict[str, list[models.StageRow]] = {}
    for stage in stages:
        named.setdefault(stage.name, []).append(stage)
    return tuple(
        StageLine(
            _STAGES.get(name, (name, "", ""))[0],
            len(runs),
            sum(run.seconds for run in runs),
            _work(name, sum(run.work_done for run in runs)),
            max(run.started_at for run in runs),
        )
        for name, runs in named.items()
    )


def _work(stage: str, count: int) -> str:
    _, one, several = _STAGES.get(stage, (stage, "unit", "units"))
    if not several:
        return ""
    return f"{count:,} {one if count == 1 else several}" if count else "nothing new"


def environment() -> Environment:
    """The environment that renders our templates, with the filters they use."""
    made = Environment(
        loader=PackageLoader("nas", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["quantity"] = lambda value, metric: "-" if value is None else format_quantity(metric, value)
    made.filters["number"] = lambda value: "-" if value is None else f"{value:.4f}"
    made.filters["moment"] = lambda at: f"{at:%Y-%m-%d %H:%M} UTC"
    made.filters["summary"] = summary
    made.filters["budget"] = said_budget
    return made
