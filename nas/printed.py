"""What commands print: trials, fronts, strategies side by side, answers from tables, what a search ends with; JSON."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text

from nas.units import format_quantity
from solvers.problem import OPTIMAL_GAP

if TYPE_CHECKING:
    from db import models
    from nas.compare import Line
    from nas.dependency import Dependency
    from nas.front import Point
    from nas.pipeline import Outcome
    from nas.pool import Alternatives
    from nas.runs import Matrix, Run
    from nas.show import LayerLine
    from nas.solve import Measured
    from nas.solve_table import Answer

# What is printed holds names and paths of the user's, in which brackets are brackets.
console = Console(markup=False, emoji=False)


def talk_beside(as_json: bool) -> Console:
    """Where work is talked about: not where its JSON goes."""
    return Console(stderr=True, markup=False, emoji=False) if as_json else console


_CLOSEST = 3
"""Close calls that are printed; all are in the JSON and in the report."""


def print_outcome(outcome: "Outcome", as_json: bool) -> None:
    if as_json:
        print_json(
            judged(outcome.search, outcome.trial) | {"report": str(outcome.report), "sentence": outcome.sentence}
        )
        return
    print_trial(outcome.search, outcome.trial)
    console.print(f"\nchild:    {outcome.child}", soft_wrap=True)
    console.print(f"report:   {outcome.report}", soft_wrap=True)
    console.print("a sentence by the child:", style="dim")
    console.print(outcome.sentence, highlight=False)


def judged(search: "models.Search", trial: "models.Trial") -> dict[str, Any]:
    """A trial as JSON takes it, with the verdict on its budget, and on each limit."""
    from nas.budget import of_all, verdicts  # It loads what a list of trials does not need.

    found = verdicts(search, trial)
    return plain(trial) | {"verdict": of_all(found.values()), "verdicts": found}


def print_trial(search: "models.Search", trial: "models.Trial") -> None:
    from nas.budget import uncertainty
    from nas.explain import Explained  # They load what a list of trials does not need.
    from nas.table import comparison

    proven = "" if trial.gap is None else f", {trial.status}, gap {trial.gap:.1e}"
    known = uncertainty(trial)
    proven += f", {known}" if proven and known else ""
    if "solved_for" in trial.details:
        proven += f", for {_limits(trial.details['solved_for'])}, as what was timed moved the limits"
    console.print(
        f"\nsearch {search.name} ({search.id}), trial {trial.id}: {_limits(trial.budget)}, by {trial.solver}{proven}",
        soft_wrap=True,
    )
    table = Table("", "parent", "child", box=None)
    for row in comparison(search, trial):
        table.add_row(row.what, row.parent, row.child)
    console.print(table)
    explained = Explained.of(trial)
    if explained is None:
        return
    score = "predicted loss" if trial.details["metric"] == "lm_loss" else "predicted KL"
    for price in explained.prices:
        console.print(price.said(score), soft_wrap=True, highlight=False)
    for call in explained.close_calls[:_CLOSEST]:
        console.print(f"close call: {call.said(score)}", soft_wrap=True, highlight=False)


def _limits(budget: Mapping[str, str]) -> str:
    return ", ".join(f"{metric} {value}" for metric, value in budget.items())


def print_front(front: "Sequence[Point]", cost: str) -> None:
    table = Table("score", cost, "of parent", "architecture")
    for point in front:
        table.add_row(f"{point.score:.4f}", format_quantity(cost, point.cost), f"{point.of_parent:.1%}", point.summary)
    console.print(table)
    unproven = [point.gap for point in front if point.status != "optimal"]
    if unproven:
        console.print(
            f"{len(unproven)} of the {len(front)} scores are proven only to within {max(unproven):.1e}", highlight=False
        )


def print_alternatives(known: "Measured", answer: "Alternatives", count: int, as_json: bool) -> None:
    if as_json:
        found = [{"trial": plain(one.trial), "unlike": one.unlike, "gap": one.solution.gap} for one in answer.found]
        print_json({"found": found, "timed_out": answer.timed_out})
        return
    from nas.table import summary  # It loads what a list of trials does not need.

    table = Table("trial", box=None)
    for column in ("score", "latency", "of parent", "memory", "unlike\nthe first"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("architecture")
    whole_s = known.parent_totals()["latency_s"]
    for one in answer.found:
        trial = one.trial
        table.add_row(
            str(trial.id), _number(trial.score), format_quantity("latency", trial.predicted_latency_s),
            _share(trial.predicted_latency_s / whole_s), format_quantity("memory", trial.predicted_memory_bytes),
            str(one.unlike), summary(trial.architecture),
        )  # fmt: skip
    console.print(table)
    if len(answer.found) < count:
        why = "in the time no other was found" if answer.timed_out else "there are no others so far apart"
        console.print(f"{len(answer.found)} of {count}: {why}", highlight=False)
    unproven = [one.solution.gap for one in answer.found if one.solution.gap > OPTIMAL_GAP]
    if unproven:
        console.print(
            f"{len(unproven)} are proven the best of what was left only to within {max(unproven):.1e}",
            highlight=False,
        )


def print_layers(layers: "Sequence[LayerLine]") -> None:
    table = Table("layer", "parent", "child", "score", "prefill", "decode", "contention", "parameters")
    for layer in layers:
        table.add_row(
            layer.place, layer.parent, layer.child, _number(layer.score),
            _milliseconds(layer.prefill_s, layer.prefill_error_s), _milliseconds(layer.decode_s, layer.decode_error_s),
            "-" if layer.contention is None else f"{layer.contention:.0%}", f"{layer.parameters:,}",
        )  # fmt: skip
    console.print(table)


def _milliseconds(seconds: float, error_s: float | None) -> str:
    """With the standard error, which may not be known."""
    return f"{seconds * 1e3:.3f} ± {'?' if error_s is None else f'{error_s * 1e3:.3f}'} ms"


def print_answer(answer: "Answer", as_json: bool) -> None:
    for note in answer.table.notes():
        typer.echo(f"note: {note}", err=True)
    if as_json:
        print_json(answer.plain())
        return
    chosen = Table("layer" if answer.table.layers else "slot", "option", answer.objective, box=None)
    for run in answer.runs():
        chosen.add_row(run.place, run.name, f"{run.score:.6g}")
    console.print(chosen)
    totals = Table("cost", "total", "limit", "shadow price", box=None)
    for cost, total in answer.solution.costs.items():
        mine = [limit for limit in answer.limits if limit.cost == cost]
        limits = [f"{'>=' if limit.minimum else '<='} {limit.value:.10g}" for limit in mine]
        prices = [f"{answer.hangs_on.prices[limit.name]:.3g}" for limit in mine]
        totals.add_row(cost, f"{total:.10g}", ", ".join(limits), ", ".join(prices))
    if answer.solution.costs:
        console.print()
        console.print(totals)
    for call in answer.close_calls()[:_CLOSEST]:
        console.print(f"close call: {call}", soft_wrap=True, highlight=False)
    console.print(f"\n{answer.summary()}", soft_wrap=True, highlight=False)


def print_trials(trials: "Sequence[models.Trial]", names: Mapping[str, str], none: str) -> None:
    """A line each; `names` are the searches' by their ids, `none` is said where there are no trials."""
    if not trials:
        console.print(none, soft_wrap=True)
        return
    table = Table("trial", *(Column(name, overflow="fold") for name in ("search", "solver", "budget")), box=None)
    for column in ("score", "latency", "measured", "KL", "loss"):
        table.add_column(column, justify="right", no_wrap=True)
    for trial in trials:
        budget = ", ".join(f"{metric}={value}" for metric, value in trial.budget.items())
        measured = "-" if trial.latency_s is None else format_quantity("latency", trial.latency_s)
        table.add_row(
            str(trial.id), names[trial.search_id], trial.solver, budget, _number(trial.score),
            format_quantity("latency", trial.predicted_latency_s), measured, _number(trial.kl), _number(trial.lm_loss),
        )  # fmt: skip
    console.print(table)


def print_comparison(lines: "Sequence[Line]", as_json: bool) -> None:
    """Sorted as they come; those without an answer in a line each, below the table."""
    from nas.report.agreement import spearman  # It loads numpy, which a list of trials does not need.

    if as_json:
        print_json([vars(line) | {"trial": line.trial and plain(line.trial)} for line in lines])
        return
    answered = [(line, line.trial) for line in lines if line.trial is not None]
    is_healed = any(line.healed_kl is not None for line in lines)
    is_timed = any(trial.latency_ratio is not None for _, trial in answered)
    table = Table("trial", Column("strategy", no_wrap=True), box=None)
    named = ("real\nKL", "sum of\nscores", "of\nbudget", "\nlatency", "models\nrun")
    for column in (*named, *["KL\nhealed"] * is_healed, *["latency\nmeasured"] * is_timed):
        table.add_column(column, justify="right", no_wrap=True)
    for line, trial in answered:
        cells = [str(trial.id), line.strategy, _number(trial.kl_whole), _number(trial.score), f"{line.of_budget:.1%}",
                 f"{line.of_parent:.1%}", str(line.evaluations)]  # fmt: skip
        healed, timed = [_number(line.healed_kl)] * is_healed, [_share(trial.latency_ratio)] * is_timed
        table.add_row(*cells, *healed, *timed)
    console.print(table)
    by_kl = [trial for _, trial in answered if trial.details["metric"] == "kl"]
    rank = spearman([trial.score for trial in by_kl], [trial.kl_whole or 0.0 for trial in by_kl])
    if rank is not None:
        console.print(f"Spearman of predicted and real KL: {rank:.3f}", highlight=False)
    for line in lines:
        if line.trial is None:
            console.print(f"{line.strategy}: {line.why_not}", highlight=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def print_dependency(found: "Dependency", as_json: bool) -> None:
    if as_json:
        print_json(found.plain())
        return
    meaning = "How far what a block (column) adds turns where one before it (row) is left out: 0 not at all, 1 wholly"
    console.print(f"{meaning}\n", soft_wrap=True, highlight=False)
    for line in _shaded(found.matrix):
        console.print(line, soft_wrap=True)
    console.print(f"\nFFNs to fuse: {_ranges(found.runs)}", soft_wrap=True)
    console.print(f"Blocks to run in parallel: {_ranges(found.windows)}", soft_wrap=True)


def _shaded(matrix: "Matrix") -> list[Text]:
    """A line a row, hotter where the dependency is larger."""
    most = max(max(row) for row in matrix) or 1.0
    lines = [Text("   " + "".join(f"{block:5}" for block in range(len(matrix))), style="dim")]
    for index, row in enumerate(matrix):
        line = Text(f"{index:3}", style="dim")
        for other, value in enumerate(row):
            line.append(f"{value:5.2f}" if other > index else 5 * " ", _heat(value / most) if other > index else "")
        lines.append(line)
    return lines


def _heat(share: float) -> Style:
    cold, hot = (242, 241, 234), (184, 64, 26)
    red, green, blue = (round(c + share * (h - c)) for c, h in zip(cold, hot, strict=True))
    return Style(color="white" if share > 0.62 else "black", bgcolor=f"rgb({red},{green},{blue})", dim=False)


def _ranges(runs: "Sequence[Run]") -> str:
    return ", ".join(f"{run} ({run.most:.2f})" for run in runs) or "none"


def plain(row: Any) -> dict[str, Any]:
    """A database row as JSON takes it."""
    return {column.name: _jsonable(getattr(row, column.name)) for column in row.__table__.columns}


def _jsonable(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
