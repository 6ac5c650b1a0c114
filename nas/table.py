"""The one table a search ends with: parent beside child. Text only; the terminal and the model card lay it out."""

import math
from collections import Counter
from dataclasses import dataclass

from blocklib.block import Architecture
from cost_models.cost import Cost
from cost_models.scenario import Scenario
from db import models
from nas.budget import verdicts
from nas.units import format_quantity


@dataclass(frozen=True)
class Row:
    what: str
    parent: str
    child: str


def comparison(search: models.Search, trial: models.Trial) -> tuple[Row, ...]:
    """What is known of a trial beside its parent; a dash where nothing was measured."""
    scenario = Scenario(**search.scenario)
    parent_cost = Cost(**search.parent_costs["whole"])
    whole, errors = parent_cost.totals(scenario), parent_cost.errors(scenario)
    parent = trial.details.get("parent", {})
    loss = parent.get("lm_loss")
    found = [
        Row("architecture", summary(search.parent_architecture), summary(trial.architecture)),
        Row("parameters", _shown("parameters", whole["parameters"]), _shown("parameters", trial.predicted_parameters)),
        Row("memory", _shown("memory", whole["memory_bytes"]), _shown("memory", trial.predicted_memory_bytes)),
        _predicted(
            "latency",
            (whole["latency_s"], errors["latency_s"]),
            (trial.predicted_latency_s, trial.predicted_latency_error_s),
        ),
        Row("  CPU contention", _contention(parent_cost.contention), _contention(trial.predicted_contention)),
        Row("latency, measured", _shown("latency", parent.get("latency_s")), _measured_latency(trial)),
    ]
    if scenario.generated_tokens > 1:
        found += [
            _predicted(
                "decode",
                (whole["decode_s"], errors["decode_s"]),
                (trial.predicted_decode_s, trial.predicted_decode_error_s),
            ),
            Row("decode, measured", _shown("decode", parent.get("decode_s")), _shown("decode", trial.decode_s)),
        ]
    if trial.latency_s is not None:
        place = 1 + [row.what for row in found].index("latency, measured")
        found.insert(place, Row("  CPU contention", *2 * [_contention(trial.contention)]))
    found += [
        Row(
            "throughput, measured",
            _shown("throughput", parent.get("throughput")),
            _shown("throughput", trial.throughput),
        ),
        Row("held-out loss", _number(loss), _number(trial.lm_loss)),
        *_foreseen(trial, "lm_loss"),
        Row("perplexity", _number(None if loss is None else math.exp(loss)), _number(trial.perplexity)),
        Row("KL to the parent", "0", _number(trial.kl)),
        Row("  before healing", "0", _number(trial.kl_before_heal)),
        *([] if trial.kl_whole is None else [Row("  on the score text, untrained", "0", _number(trial.kl_whole))]),
        *_foreseen(trial, "kl"),
        Row("top-1 agreement", "100.0%", _share(trial.top1_agreement)),
        *(Row(f"{metric} within {trial.budget[metric]}", "", said) for metric, said in verdicts(search, trial).items()),
    ]
    return tuple(found)


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


def _predicted(metric: str, parent: tuple[float, float | None], child: tuple[float, float | None]) -> Row:
    """Both as (value, standard error)."""
    share = f" ({child[0] / parent[0]:.1%})"
    return Row(f"{metric}, predicted", _uncertain(metric, *parent), _uncertain(metric, *child) + share)


def _uncertain(metric: str, value: float, error: float | None) -> str:
    """With its standard error, unless it is exact."""
    if error == 0:
        return _shown(metric, value)
    return f"{_shown(metric, value)} ± {'?' if error is None else _shown(metric, error)}"


def _contention(share: float | None) -> str:
    return "not noted" if share is None else f"{share:.0%}"


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
