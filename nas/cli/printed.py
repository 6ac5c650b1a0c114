"""The output of commands: trials, fronts, strategies side by side, answers from tables, the end of a search; JSON."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text

from cost_models.metrics import METRICS
from nas.job.units import format_quantity, said_budget
from nas.terminal.console import Terminal, console
from nas.terminal.printable import printable
from nas.view.plain import answered, plain
from solvers.problem import OPTIMAL_GAP

if TYPE_CHECKING:
    from db import models
    from nas.compare.strategies import StrategyResult
    from nas.files.forget import Deleted
    from nas.job.fusion_candidates import LayerRun, Matrix
    from nas.pipeline import Outcome
    from nas.scoring.block_dependency import Dependency
    from nas.solve.front import Point
    from nas.solve.pool import Alternatives
    from nas.tables.solve import TableAnswer
    from nas.trial_query import TrialList, TrialQuery
    from nas.view.trial import LayerLine


_CLOSEST = 3
"""The number of close calls that are printed. The JSON and the report have all of them."""


_WIDEST = 10_000


def print_whole(table: Table, where: Console = console) -> None:
    """Print a table. If the output is no terminal, the table keeps its full width, so that no cell is cut."""
    if not where.is_terminal:
        where = Terminal(file=where.file, width=_WIDEST)
    where.print(table)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*heads, box=None)
    for row in rows:
        table.add_row(*row)
    print_whole(table)


NOT_KEPT = "It is not kept as a trial, because the database is read-only here."


def is_kept(trial: "models.TrialRow") -> bool:
    """Whether the database has it. A read-only database keeps no answers."""
    return trial.id is not None


def print_outcome(outcome: "Outcome", as_json: bool) -> None:
    if as_json:
        more = {"report": str(outcome.report), "sentence": outcome.sentence}
        print_json(answered(outcome.search, outcome.trial) | more)
        return
    print_trial(outcome.search, outcome.trial)
    console.print(f"\nchild:    {outcome.child}", soft_wrap=True)
    console.print(f"report:   {outcome.report}", soft_wrap=True)
    console.print("a sentence by the child:", style="dim")
    console.print(outcome.sentence, highlight=False)


def print_cautions(said: Sequence[str], where: Console = console) -> None:
    for sentence in said:
        where.print(f"caution: {sentence}", soft_wrap=True, highlight=False)


def print_trial(search: "models.SearchRow", trial: "models.TrialRow") -> None:
    from nas.solve.budget_loop import uncertainty
    from nas.solve.caution import cautions
    from nas.solve.explain import Explained  # They load what a list of trials does not need.
    from nas.solve.plain_price import PlainPrice
    from nas.view.table import comparison

    proven = "" if trial.gap is None else f", {trial.status}, gap {trial.gap:.1e}"
    known = uncertainty(trial)
    proven += f", {known}" if proven and known else ""
    if trial.solved_for is not None:
        proven += f", for {said_budget(trial.solved_for)}, because timing moved the limits"
    number = f"trial {trial.id}" if is_kept(trial) else "not kept as a trial"
    console.print(
        f"\nsearch {search.name} ({search.id}), {number}: {said_budget(trial.budget)}, by {trial.solver}{proven}",
        soft_wrap=True,
    )
    table = Table("", "parent", "child", box=None)
    for row in comparison(search, trial):
        table.add_row(row.what, row.parent, row.child)
    print_whole(table)
    print_cautions(cautions(search, trial))
    plain_price, explained = PlainPrice.of(trial), Explained.of(trial)
    if plain_price is not None:
        console.print(plain_price.said(trial.metric), soft_wrap=True, highlight=False)
    if explained is None:
        return
    score = "predicted loss" if trial.metric == "lm_loss" else "predicted KL"
    for price in explained.prices:
        console.print(price.said(score), soft_wrap=True, highlight=False)
    for call in explained.close_calls[:_CLOSEST]:
        console.print(f"close call: {call.said(score)}", soft_wrap=True, highlight=False)


def print_front(front: "Sequence[Point]", cost: str) -> None:
    table = Table("score", cost, "of parent", "architecture")
    for point in front:
        table.add_row(f"{point.score:.4f}", format_quantity(cost, point.cost), f"{point.of_parent:.1%}", point.summary)
    print_whole(table)
    unproven = [point.gap for point in front if point.status != "optimal"]
    if unproven:
        console.print(
            f"{len(unproven)} of the {len(front)} scores are proven only to within {max(unproven):.1e}", highlight=False
        )


def print_alternatives(search: "models.SearchRow", answer: "Alternatives", count: int, as_json: bool) -> None:
    from nas.solve.caution import cautions

    told = list(dict.fromkeys(said for one in answer.found for said in cautions(search, one.trial)))
    if as_json:
        found = [{"trial": plain(one.trial), "unlike": one.unlike, "gap": one.solution.gap} for one in answer.found]
        print_json({"found": found, "ended": answer.ended, "timed_out": answer.ended == "time", "cautions": told})
        return
    from nas.job.stored import parent_totals  # They load what a list of trials does not need.
    from nas.solve.summary import summary

    asked = _asked([one.trial for one in answer.found], ("latency", "memory"))
    table = Table("trial", box=None)
    for column in ("score", "latency", "of parent", "memory", *asked, "unlike\nthe first"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("architecture")
    whole_s = parent_totals(search)[METRICS["latency"].column]
    for one in answer.found:
        trial = one.trial
        table.add_row(
            str(trial.id) if is_kept(trial) else "-", _number(trial.score), _predicted(trial, "latency"),
            _share(trial.predicted_latency_s / whole_s), _predicted(trial, "memory"),
            *[_predicted(trial, metric) for metric in asked], str(one.unlike), summary(trial.architecture),
        )  # fmt: skip
    print_whole(table)
    print_cautions(told)
    if len(answer.found) < count:
        console.print(f"{len(answer.found)} of {count}: {answer.why_no_more}", highlight=False)
    if not all(is_kept(one.trial) for one in answer.found):
        console.print(NOT_KEPT.replace("It is not kept as a trial", "They are not kept as trials"), soft_wrap=True)
    unproven = [one.solution.gap for one in answer.found if one.solution.gap > OPTIMAL_GAP]
    if unproven:
        console.print(
            f"{len(unproven)} are proven the best of the remaining ones only to within {max(unproven):.1e}",
            highlight=False,
        )


def print_layers(layers: "Sequence[LayerLine]") -> None:
    from nas.view.table import share_taken, uncertain

    table = Table("layer", "parent", "child", "score", "prefill", "decode", "contention", "memory", "parameters")
    for layer in layers:
        table.add_row(
            layer.place, layer.parent, layer.child, _number(layer.score),
            uncertain("ttft", layer.prefill_s, layer.prefill_error_s),
            uncertain("decode", layer.decode_s, layer.decode_error_s), share_taken(layer.contention),
            format_quantity("memory", layer.memory_bytes), f"{layer.parameters:,}",
        )  # fmt: skip
    print_whole(table)


def print_answer(answer: "TableAnswer", as_json: bool) -> None:
    for note in answer.table.notes():
        typer.echo(printable(f"note: {note}"), err=True)
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


def print_trials(found: "TrialList", query: "TrialQuery", where: Console = console) -> None:
    """Print a line for each trial."""
    trials = found.trials
    if not trials:
        where.print(f"no trials {'match' if query.names_trials else 'yet'} in {found.place}", soft_wrap=True)
        return
    named = ["search", "solver", "budget", *["predicted"] * any(map(_asked_values, trials))]
    table = Table("trial", *(Column(name, overflow="fold") for name in named), box=None)
    columns = _trial_columns(trials)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for index, trial in enumerate(trials):
        cells = [
            found.searches[trial.search_id].name,
            trial.solver,
            said_budget(trial.budget, between="="),
            _asked_values(trial),
        ]
        table.add_row(str(trial.id), *cells[: len(named)], *(column[index] for column in columns.values()))
    print_whole(table, where)


def print_deleted(deleted: "Deleted", as_json: bool) -> None:
    if as_json:
        files, exports = ([str(path) for path in paths] for paths in (deleted.files, deleted.exports))
        print_json({"deleted": deleted.trials, "files": files, "exports_left": exports, "notes": deleted.notes})
        return
    count = len(deleted.trials)
    console.print(f"deleted {count} trial{'s' if count != 1 else ''}", highlight=False)
    for path in deleted.files:
        console.print(f"deleted its child {path}", soft_wrap=True, highlight=False)
    for note in deleted.notes:
        console.print(note, soft_wrap=True, highlight=False)
    for path in deleted.exports:
        console.print(f"left as it is: the exported child {path}", soft_wrap=True, highlight=False)


def _trial_columns(trials: "Sequence[models.TrialRow]") -> dict[str, list[str]]:
    """The columns of the trials, without empty ones."""
    found = {
        "score": [_number(trial.score) for trial in trials],
        "latency": [_predicted(trial, "latency") for trial in trials],
        "measured": [_measured(trial, "latency") for trial in trials],
        "real KL": [_number(trial.kl_whole) for trial in trials],
        "KL": [_number(trial.kl) for trial in trials],
        "loss": [_number(trial.lm_loss) for trial in trials],
    }
    return {name: cells for name, cells in found.items() if {*cells} != {"-"}}


def _asked_values(trial: "models.TrialRow") -> str:
    """The trial's values of its budget's metrics, in the budget's order. Latency has a column of its own."""
    asked = [metric for metric in trial.budget if metric in METRICS and metric != "latency"]
    return ", ".join(f"{metric} {_predicted(trial, metric)}{_as_measured(trial, metric)}" for metric in asked)


def _as_measured(trial: "models.TrialRow", metric: str) -> str:
    is_known = METRICS[metric].is_measured and getattr(trial, METRICS[metric].column) is not None
    return f" ({_measured(trial, metric)} measured)" if is_known else ""


def _asked(trials: "Sequence[models.TrialRow]", shown: Sequence[str]) -> list[str]:
    """The metrics that the trials' budgets name, without those that are always shown."""
    named = {metric for trial in trials for metric in trial.budget}
    return [metric for metric in METRICS if metric in named and metric not in shown]


def _predicted(trial: "models.TrialRow", metric: str) -> str:
    return _quantity(metric, getattr(trial, METRICS[metric].predicted))


def _measured(trial: "models.TrialRow", metric: str) -> str:
    return _quantity(metric, getattr(trial, METRICS[metric].column))


def _quantity(metric: str, value: float | None) -> str:
    return "-" if value is None else format_quantity(metric, value)


def print_comparison(search: "models.SearchRow", lines: "Sequence[StrategyResult]", as_json: bool) -> None:
    """Print the strategies in the given order. Those without an answer get a line each below the table."""
    from nas.scoring.rank_correlation import spearman  # It loads numpy, which a list of trials does not need.
    from nas.solve.caution import cautions

    if as_json:
        print_json([vars(line) | {"trial": line.trial and answered(search, line.trial)} for line in lines])
        return
    found = [(line, line.trial) for line in lines if line.trial is not None]
    asked = _asked([trial for _, trial in found], ("latency",))
    is_healed = any(line.healed_kl is not None for line in lines)
    is_timed = any(trial.latency_ratio is not None for _, trial in found)
    table = Table("trial", Column("strategy", no_wrap=True), box=None)
    named = ("real\nKL", "sum of\nscores", "of\nbudget", "\nlatency", "models\nrun")
    for column in (*named, *asked, *["KL\nhealed"] * is_healed, *["latency\nmeasured"] * is_timed):
        table.add_column(column, justify="right", no_wrap=True)
    for line, trial in found:
        cells = [str(trial.id), line.strategy, _number(trial.kl_whole), _number(trial.score), f"{line.of_budget:.1%}",
                 f"{line.of_parent:.1%}", str(line.evaluations),
                 *[_predicted(trial, metric) for metric in asked]]  # fmt: skip
        healed, timed = [_number(line.healed_kl)] * is_healed, [_share(trial.latency_ratio)] * is_timed
        table.add_row(*cells, *healed, *timed)
    print_whole(table)
    print_cautions(list(dict.fromkeys(said for _, trial in found for said in cautions(search, trial))))
    by_kl = [trial for _, trial in found if trial.metric == "kl"]
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
    meaning = "How much the output of a block (column) turns without an earlier block (row): 0 not at all, 1 fully"
    console.print(f"{meaning}\n", soft_wrap=True, highlight=False)
    for line in _shaded(found.matrix):
        console.print(line, soft_wrap=True)
    console.print(f"\nFFNs to fuse: {_ranges(found.runs)}", soft_wrap=True)
    console.print(f"Blocks to run in parallel: {_ranges(found.windows)}", soft_wrap=True)


def _shaded(matrix: "Matrix") -> list[Text]:
    """One line for each row. A cell is hotter if the dependency is larger."""
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


def _ranges(runs: "Sequence[LayerRun]") -> str:
    return ", ".join(f"{run} ({run.most:.2f})" for run in runs) or "none"


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
