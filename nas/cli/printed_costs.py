"""How commands print costs beside times."""

from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.table import Table

from nas.cli.printed import print_json
from nas.terminal.console import console

if TYPE_CHECKING:
    from cost_models.timing.prediction_error import PredictionError
    from nas.solve.whole_times import CostCheck
    from nas.stages.cost_table import CostTable


def print_cost_check(found: "CostCheck", as_json: bool) -> None:
    """Print each architecture, then the errors of the sums beside those of a repeated timing."""
    if as_json:
        print_json(asdict(found) | {"wholes": [asdict(whole) | {"error": whole.error} for whole in found.wholes]})
        return
    table = Table("architecture", box=None)
    for column in ("predicted", "measured", "error"):
        table.add_column(column, justify="right", no_wrap=True)
    for whole in sorted(found.wholes, key=lambda whole: whole.predicted):
        table.add_row(whole.architecture, f"{whole.predicted:.1%}", f"{fmean(whole.timed):.1%}", f"{whole.error:+.1%}")
    console.print(table)
    lines = [("latency", found.error), *found.phases.items()]
    for name, error in lines:
        console.print(f"{name}: {_said(error)}", highlight=False, soft_wrap=True)
    if found.repeats is not None:
        console.print(f"a repeated timing of latency: {_said(found.repeats)}", highlight=False, soft_wrap=True)


def print_cost_table(table: "CostTable", out: Path, as_json: bool) -> None:
    """Print where the table is, and how a job names it."""
    if as_json:
        print_json(table.model_dump(mode="json"))
        return
    console.print(f"{out}: {len(table.geometries)} geometries on {table.hardware}", soft_wrap=True)
    served = ", ".join(f"{name}: {getattr(table.scenario, name)}" for name in ("engine", "dtype", "device"))
    console.print(f"in the job that builds: measure: {{table: {out.name}}}, and scenario: {{{served}, ...}} as here",
                  soft_wrap=True, highlight=False)  # fmt: skip


def _said(error: "PredictionError") -> str:
    tau = "" if error.tau is None else f", Kendall's tau {error.tau:.3f}"
    return f"mean absolute error {error.mape:.2%}, bias {error.bias:+.2%}, worst {error.worst:+.1%}{tau}"
