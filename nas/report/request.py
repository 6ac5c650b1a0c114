"""The request of a search for a reader without its job file, and whether a trial meets it.

Knows how a scenario and a budget read as text. Does not know how a budget is solved for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from blocklib.block import Architecture, Choice
from cost_models.metrics import Metric
from cost_models.scenario import Scenario
from db import models
from db.measured import KnownOption
from nas.job.stored import parent_totals, request_of, scenario_in
from nas.job.units import Limit, format_quantity, parse_limit
from nas.solve.budget_loop import Verdict, verdicts
from nas.solve.summary import summary


@dataclass(frozen=True)
class Fact:
    name: str
    text: str


@dataclass(frozen=True)
class BudgetLine:
    """One limit beside the trial's predicted and measured value, and whether the measurement meets it."""

    limit: str
    predicted: str
    measured: str
    verdict: Verdict


def facts(search: models.SearchRow, budget: Sequence[Limit]) -> tuple[Fact, ...]:
    """The request, one fact per line."""
    layers = Architecture.parse(search.parent_architecture).layers
    metric = {
        "kl": "KL divergence from the parent's next-token distribution",
        "lm_loss": "rise of the loss on the text",
    }
    asked = request_of(search)
    rounded = "" if asked.products == "float32" else f", with matrix products in {asked.products}"
    return (
        Fact("parent", search.parent),
        Fact("its architecture", f"{layers} layers: {summary(search.parent_architecture)}"),
        Fact("served as", served(scenario_in(search))),
        Fact("on", search.hardware),
        Fact("budget", "; ".join(bounded(limit, search) for limit in budget) or "none"),
        Fact("to minimise", metric[asked.metric] + rounded),
        *_rate(search),
    )


def _rate(search: models.SearchRow) -> tuple[Fact, ...]:
    """The learning rate of distillation and who says it; nothing where nothing is trained, or nobody noted it."""
    said = {"job": "the job's own", "tuned": "as nas tune found for this parent", "default": "the default"}
    if search.rate_source is None:
        return ()
    rate = request_of(search).learning_rate
    return (Fact("learning rate of distillation", f"{rate:g}, {said[search.rate_source]}"),)


def caches(options: Sequence[KnownOption], metric: str) -> tuple[Fact, ...]:
    """The types of keys and values to choose from, each with its score in `metric`, kl or lm_loss; nothing where the
    scenario says the type, or before they are scored."""
    kept = [(Choice.parse(one.option.choice), one.score) for one in options]
    told = [
        f"{choice.precision} (score {getattr(score, metric):.4g})"
        for choice, score in kept
        if choice.role == "cache" and score is not None
    ]
    return (Fact("keys and values", f"one of {', '.join(told)}"),) if told else ()


def served(scenario: Scenario) -> str:
    """A scenario in words."""
    threads = "all cores" if scenario.threads is None else _counted(scenario.threads, "thread")
    where = f"{scenario.device} ({threads})" if scenario.device == "cpu" else scenario.device
    prompt, answer = _counted(scenario.prompt_tokens, "token"), _counted(scenario.generated_tokens, "generated token")
    batch = _counted(scenario.batch, "sequence")
    engine = "" if scenario.engine == "torch" else f" by {scenario.engine}"
    kept = "" if scenario.kv_cache is None else f", keys and values in {scenario.kv_cache}"
    return f"a batch of {batch}, each {prompt} of prompt and {answer}, in {scenario.dtype} on {where}{engine}{kept}"


def budget_of(search: models.SearchRow, trial: models.TrialRow | None) -> tuple[Limit, ...]:
    """The trial's budget, or the request's where there is no trial yet."""
    if trial is None:
        return request_of(search).budget
    return tuple(parse_limit(metric, text) for metric, text in trial.budget.items())


def bounded(limit: Limit, search: models.SearchRow) -> str:
    """A limit in words, with its absolute value if the parent's own value is known."""
    side = "at least" if limit.at_least else "at most"
    if not limit.relative:
        return f"{limit.metric} {side} {format_quantity(limit.metric, limit.value)}"
    words = f"{limit.metric} {side} {limit.text} of the parent's"
    whole = parent_totals(search).get(limit.row.column)
    return words if whole is None else f"{words} ({format_quantity(limit.metric, limit.absolute(whole))})"


def budget_lines(search: models.SearchRow, trial: models.TrialRow) -> tuple[BudgetLine, ...]:
    """Each limit of the trial's budget, predicted and measured."""
    found = verdicts(search, trial)
    return tuple(_line(search, trial, limit, found[limit.metric]) for limit in budget_of(search, trial))


def _line(search: models.SearchRow, trial: models.TrialRow, limit: Limit, verdict: Verdict) -> BudgetLine:
    metric = limit.row
    parent, value = parent_totals(search)[metric.column], getattr(trial, metric.predicted)
    predicted = f"{format_quantity(limit.metric, value)} ({value / parent:.1%})"
    found = getattr(trial, metric.column)
    if found is None:
        return BudgetLine(bounded(limit, search), predicted, "-", verdict)
    share = measured_share(trial, metric, found, parent)
    spread = getattr(trial, metric.spread) if metric.is_measured else None
    shown = f"{format_quantity(limit.metric, found)} ({share:.1%}{f' ± {share * spread:.1%}' if spread else ''})"
    if not metric.is_measured:
        shown += ", by arithmetic"
    return BudgetLine(bounded(limit, search), predicted, shown, verdict)


def measured_share(trial: models.TrialRow, metric: Metric, found: float, predicted_parent: float) -> float:
    """The value `found` of a trial's metric as a share of the parent's value: the one measured beside the child, else
    the sum over the parent's parts."""
    if metric.ratio and not metric.at_least and (ratio := getattr(trial, metric.ratio)) is not None:
        return float(ratio)
    return found / (trial.of_parent.get(metric.column) or predicted_parent)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
