"""How commands print costs beside times."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from nas.cli.printed import print_json
from nas.terminal.console import console
from nas.view.cost_check import cost_check_lines

if TYPE_CHECKING:
    from nas.solve.whole_times import CostCheck
    from nas.stages.cost_table import CostTable

_ERRORS = ("mean absolute error", "bias", "worst", "Kendall's tau")


def print_cost_check(found: "CostCheck", as_json: bool) -> None:
    """Print each architecture, then the errors of the sums beside those of a repeated timing."""
    if as_json:
        print_json(asdict(found) | {"wholes": [asdict(whole) | {"error": whole.error} for whole in found.wholes]})
        return
    table = Table("architecture", box=None)
    for column in ("predicted", "measured", "error"):
        table.add_column(column, justify="right", no_wrap=True)
    lines = cost_check_lines(found)
    for whole in lines.wholes:
        table.add_row(*whole)
    console.print(table)
    for name, *errors in lines.errors:
        said = ", ".join(f"{of} {error}" for of, error in zip(_ERRORS, errors, strict=True))
        console.print(f"{name}: {said}", highlight=False, soft_wrap=True)


def print_cost_table(table: "CostTable", out: Path, as_json: bool) -> None:
    """Print where the table is, and how a job names it."""
    if as_json:
        print_json(table.model_dump(mode="json"))
        return
    console.print(f"{out}: {len(table.geometries)} geometries on {table.hardware}", soft_wrap=True)
    served = ", ".join(f"{name}: {getattr(table.scenario, name)}" for name in ("engine", "dtype", "device"))
    console.print(f"in the job that builds: measure: {{table: {out.name}}}, and scenario: {{{served}, ...}} as here",
                  soft_wrap=True, highlight=False)  # fmt: skip
