"""What commands print: a trial beside its parent, what a search ends with, block dependency, rows as JSON."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from db import models
    from nas.dependency import Dependency
    from nas.pipeline import Outcome
    from nas.runs import Matrix, Run

console = Console()


def print_outcome(outcome: "Outcome", as_json: bool) -> None:
    if as_json:
        print_json(plain(outcome.trial) | {"report": str(outcome.report), "sentence": outcome.sentence})
        return
    print_trial(outcome.search, outcome.trial)
    console.print(f"\nchild:    {outcome.child}", soft_wrap=True)
    console.print(f"report:   {outcome.report}", soft_wrap=True)
    console.print("a sentence by the child:", style="dim")
    console.print(outcome.sentence, markup=False, highlight=False)


def print_trial(search: "models.Search", trial: "models.Trial") -> None:
    from nas.table import comparison  # It loads what a list of trials does not need.

    budget = ", ".join(f"{metric} {value}" for metric, value in trial.budget.items())
    proven = "" if trial.gap is None else f", {trial.status}, gap {trial.gap:.1e}"
    console.print(f"\nsearch {search.name} ({search.id}), trial {trial.id}: {budget}, by {trial.solver}{proven}")
    table = Table("", "parent", "child", box=None)
    for row in comparison(search, trial):
        table.add_row(row.what, row.parent, row.child)
    console.print(table)


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
