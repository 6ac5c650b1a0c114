"""The one table a search ends with: parent beside child. Text only; the terminal and the model card lay it out."""

import math
from collections import Counter
from dataclasses import dataclass

from blocklib.block import Architecture
from cost_models.cost import Cost
from cost_models.scenario import Scenario
from db import models
from nas.budget import verdicts
from nas.units import COLUMNS, format_quantity, said_limit


@dataclass(frozen=True)
class Row:
    what: str
    parent: str
    child: str


def comparison(search: models.Search, trial: models.Trial) -> tuple[Row, ...]:
    """A trial beside its parent: every metric as predicted, and everything that was measured of the child. A value that
    nobody measured of it has no row."""
    scenario = Scenario(**search.scenario)
    parent_cost = Cost(**search.parent_costs["whole"])
    whole = parent_cost.totals(scenario)
    parent = trial.details.get("parent", {})
    loss = parent.get("lm_loss")
    found = [
        Row("architecture", summary(search.parent_architecture), summary(trial.architecture)),
        Row("parameters", _shown("parameters", whole["parameters"]), _shown("parameters", trial.predicted_parameters)),
        Row("memory", _shown("memory", whole["memory_bytes"]), _shown("memory", trial.predicted_memory_bytes)),
    ]
    for metric in _timed(scenario, trial):
        column = COLUMNS[metric]
        found += _predicted(metric, parent_cost, scenario, trial)
        if metric == "latency":
            found += _contention(parent_cost.contention, trial.predicted_contention)
        if getattr(trial, column) is not None:
            shown = _measured_latency(trial) if metric == "latency" else _shown(metric, getattr(trial, column))
            found.append(Row(f"{metric}, measured", _shown(metric, parent.get(column)), shown))
            found += _contention(*2 * [trial.contention]) if metric == "latency" else []
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
        found.append(Row("top-1 agreement", "100.0%", _share(trial.top1_agreement)))
    found += [
        Row(f"budget, {metric} {said_limit(metric, trial.budget[metric])}", "", verdict)
        for metric, verdict in verdicts(search, trial).items()
        if verdict != "not measured"
    ]
    return tuple(found)


def _timed(scenario: Scenario, trial: models.Trial) -> list[str]:
    """The metrics that take a clock. The first token's time is all of the latency where no other token follows."""
    more = ["ttft", "decode"] if scenario.generated_tokens > 1 else [*{"ttft"} & trial.budget.keys()]
    return ["latency", *more, "throughput"]


def _under(heading: str, rows: list[Row]) -> list[Row]:
    """Rows about one thing, which the first of them names; where that is not known, each does."""
    if rows and rows[0].what == heading:
        return rows
    return [Row(f"{heading}, {row.what.strip()}", row.parent, row.child) for row in rows]


def _measured(what: str, parent: str, value: float | None) -> list[Row]:
    return [] if value is None else [Row(what, parent, _number(value))]


def _foreseen(trial: models.Trial, metric: str) -> list[Row]:
    """The sum of scores, where the trial was solved for `metric`: it stands below the row that it foresees."""
    if trial.details["metric"] != metric:
        return []
    name = {"kl": "predicted (sum of scores)", "lm_loss": "predicted rise (sum of scores)"}[metric]
    return [Row(f"  {name}", "0", _number(trial.score))]


def summary(architecture: str) -> str:
    """An architecture in a line: its blocks, counted where they repeat."""
    counted = Counter(str(block) for _, block in Architecture.parse(architecture).placed())
    return ", ".join(f"{count} x {block}" for block, count in counted.items())


def markdown(rows: tuple[Row, ...]) -> str:
    lines = ["| | parent | child |", "|---|---|---|"]
    return "\n".join(lines + [f"| {row.what.strip()} | {row.parent} | {row.child} |" for row in rows])


def _predicted(metric: str, parent: Cost, scenario: Scenario, trial: models.Trial) -> list[Row]:
    """No row where the parent's cost holds no seconds, as that of arithmetic alone does."""
    column = COLUMNS[metric]
    whole, child = parent.totals(scenario).get(column), getattr(trial, f"predicted_{column}")
    if not whole:
        return []
    errors = parent.errors(scenario)
    if metric == "throughput":
        # As large a share of it as latency's.
        latency_s = parent.totals(scenario)["latency_s"]
        of_parent = _scaled(errors["latency_s"], whole / latency_s)
        of_child = _scaled(trial.predicted_latency_error_s, child / trial.predicted_latency_s)
    else:
        of_parent, of_child = errors[column], getattr(trial, f"predicted_{metric}_error_s")
    share = f" ({child / whole:.1%})"
    return [
        Row(f"{metric}, predicted", uncertain(metric, whole, of_parent), uncertain(metric, child, of_child) + share)
    ]


def _scaled(error: float | None, factor: float) -> float | None:
    return None if error is None else factor * error


def uncertain(metric: str, value: float, error: float | None) -> str:
    """A quantity with its standard error, unless it is exact; None where nobody knows."""
    if error == 0:
        return _shown(metric, value)
    return f"{_shown(metric, value)} ± {'?' if error is None else _shown(metric, error)}"


def _contention(parent: float | None, child: float | None) -> list[Row]:
    """While what stands above was timed."""
    known = (parent, child) != (None, None)
    return [Row("  CPU contention", share_taken(parent), share_taken(child))] if known else []


def share_taken(contention: float | None) -> str:
    """CPU contention; None where nobody noted it."""
    return "not noted" if contention is None else f"{contention:.0%}"


def _measured_latency(trial: models.Trial) -> str:
    if trial.latency_s is None or trial.latency_ratio is None or trial.latency_spread is None:
        return "-"
    points = trial.latency_ratio * trial.latency_spread
    return f"{_shown('latency', trial.latency_s)} ({trial.latency_ratio:.1%} ± {points:.1%})"


def _shown(metric: str, value: float | None) -> str:
    return "-" if value is None else format_quantity(metric, value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
