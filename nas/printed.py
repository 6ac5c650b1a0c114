"""What commands print: a trial beside its parent, what a search ends with, rows as JSON."""

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from db import models
    from nas.pipeline import Outcome

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


def plain(row: Any) -> dict[str, Any]:
    """A database row as JSON takes it."""
    return {column.name: _jsonable(getattr(row, column.name)) for column in row.__table__.columns}


def _jsonable(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
