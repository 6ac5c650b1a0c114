"""The one table a search ends with: parent beside child. Text only; the terminal and the model card lay it out."""

import math
from dataclasses import dataclass

from cost_models.cost import Cost
from cost_models.metrics import LATENCY, METRICS, Metric
from cost_models.scenario import Scenario
from db import models
from nas.job.stored import parent_costs_of, scenario_in
from nas.job.units import format_quantity, said_limit
from nas.solve.budget_loop import verdicts
from nas.solve.summary import summary


@dataclass(frozen=True)
class ComparisonRow:
    what: str
    parent: str
    child: str


def comparison(search: models.SearchRow, trial: models.TrialRow) -> tuple[ComparisonRow, ...]:
    """A trial beside its parent: every metric as predicted, and everything that was measured of the child. A value that
    nobody measured of it has no row."""
    scenario, parent_cost, loss = scenario_in(search), parent_costs_of(search).whole, trial.parent_lm_loss
    assert parent_cost is not None, f"search {search.id} has trials, and its parent was never measured"
    counted = [metric for metric in METRICS.values() if not metric.is_measured]
    found = [
        ComparisonRow("architecture", summary(search.parent_architecture), summary(trial.architecture)),
        *(row for metric in reversed(counted) for row in _counted(metric, parent_cost, scenario, trial)),
    ]
    for metric in METRICS.values():
        if metric.is_measured and (scenario.generated_tokens > 1 or not metric.is_phase or metric.name in trial.budget):
            found += _measured_metric(metric, parent_cost, scenario, trial)
    losses = [
        *_measured("held-out loss", _number(loss), trial.lm_loss),
        *_foreseen(trial, "lm_loss"),
    ]
    fidelity = [
        *_measured("KL to the parent", "0", trial.kl),
        *_measured("  before healing", "0", trial.kl_before_heal),
        *_measured("  on the score text, untrained", "0", trial.kl_whole),
        *_foreseen(trial, "kl"),
    ]
    found += [
        *_under("held-out loss", losses),
        *_measured("perplexity", _number(None if loss is None else math.exp(loss)), trial.perplexity),
        *_under("KL to the parent", fidelity),
    ]
    if trial.top1_agreement is not None:
        found.append(ComparisonRow("top-1 agreement", "100.0%", _share(trial.top1_agreement)))
    found += [
        ComparisonRow(f"budget, {metric} {said_limit(metric, trial.budget[metric])}", "", verdict)
        for metric, verdict in verdicts(search, trial).items()
        if verdict != "not measured"
    ]
    return tuple(found)


def _counted(metric: Metric, parent: Cost, scenario: Scenario, trial: models.TrialRow) -> list[ComparisonRow]:
    """A metric that arithmetic gives; nobody measures it. No row where the trial is older than the metric."""
    value = getattr(trial, metric.predicted)
    if value is None:
        return []
    return [
        ComparisonRow(
            metric.name, _shown(metric.name, metric.of(parent, scenario, parent.parameters)), _shown(metric.name, value)
        )
    ]


def _measured_metric(metric: Metric, parent: Cost, scenario: Scenario, trial: models.TrialRow) -> list[ComparisonRow]:
    """As predicted and as measured, and below the latency the CPU contention it was taken under."""
    rows, is_latency = _predicted(metric, parent, scenario, trial), metric is LATENCY
    rows += _contention(parent.contention, trial.predicted_contention) if is_latency else []
    value, of_parent = getattr(trial, metric.column), trial.of_parent.get(metric.column)
    if value is not None:
        rows.append(
            ComparisonRow(f"{metric.name}, measured", _shown(metric.name, of_parent), _with_share(metric, trial))
        )
        rows += _contention(trial.contention, trial.contention) if is_latency else []
    return rows


def _under(heading: str, rows: list[ComparisonRow]) -> list[ComparisonRow]:
    """Rows about one thing, which the first of them names; where that is not known, each does."""
    if rows and rows[0].what == heading:
        return rows
    return [ComparisonRow(f"{heading}, {row.what.strip()}", row.parent, row.child) for row in rows]


def _measured(what: str, parent: str, value: float | None) -> list[ComparisonRow]:
    return [] if value is None else [ComparisonRow(what, parent, _number(value))]


def _foreseen(trial: models.TrialRow, metric: str) -> list[ComparisonRow]:
    """The sum of scores, where the trial was solved for `metric`: it stands below the row that it foresees."""
    if trial.metric != metric:
        return []
    name = {"kl": "predicted (sum of scores)", "lm_loss": "predicted rise (sum of scores)"}[metric]
    return [ComparisonRow(f"  {name}", "0", _number(trial.score))]


def markdown(rows: tuple[ComparisonRow, ...]) -> str:
    lines = ["| | parent | child |", "|---|---|---|"]
    return "\n".join(lines + [f"| {row.what.strip()} | {row.parent} | {row.child} |" for row in rows])


def _predicted(metric: Metric, parent: Cost, scenario: Scenario, trial: models.TrialRow) -> list[ComparisonRow]:
    """No row where nobody knows it, and where the parent's cost holds no seconds, as that of arithmetic alone does."""
    whole, child = metric.of(parent, scenario, parent.parameters), getattr(trial, metric.predicted)
    if not whole or child is None:
        return []
    error = getattr(trial, metric.predicted_error)
    if error is not None:
        error = metric.error_from(error, child, getattr(trial, metric.summed.predicted))
    name, share = metric.name, f" ({child / whole:.1%})"
    of_parent = uncertain(name, whole, metric.error(parent, scenario))
    return [ComparisonRow(f"{name}, predicted", of_parent, uncertain(name, child, error) + share)]


def uncertain(metric: str, value: float, error: float | None) -> str:
    """A quantity with its standard error, unless it is exact; None where nobody knows."""
    if error == 0:
        return _shown(metric, value)
    return f"{_shown(metric, value)} ± {'?' if error is None else _shown(metric, error)}"


def _contention(parent: float | None, child: float | None) -> list[ComparisonRow]:
    """While what stands above was timed."""
    known = (parent, child) != (None, None)
    return [ComparisonRow("  CPU contention", share_taken(parent), share_taken(child))] if known else []


def share_taken(contention: float | None) -> str:
    """CPU contention; None where nobody noted it."""
    return "not noted" if contention is None else f"{contention:.0%}"


def _with_share(metric: Metric, trial: models.TrialRow) -> str:
    """The measured value, and the share of the parent's where a trial keeps that."""
    shown = _shown(metric.name, getattr(trial, metric.column))
    if not metric.has_ratio or metric.ratio is None:
        return shown
    ratio, spread = getattr(trial, metric.ratio), getattr(trial, metric.spread)
    return "-" if ratio is None or spread is None else f"{shown} ({ratio:.1%} ± {ratio * spread:.1%})"


def _shown(metric: str, value: float | None) -> str:
    return "-" if value is None else format_quantity(metric, value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
