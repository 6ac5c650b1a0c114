"""The commands about costs. `nas/cli/main.py` registers them."""

from pathlib import Path
from typing import Annotated

import typer

import nas
from nas.cli.arguments import AsJson, Db, SearchName
from nas.cli.printed_costs import print_cost_check, print_cost_table
from nas.files.output import check_output
from nas.terminal.console import talk_beside

costs = typer.Typer(help="Costs of a search: how far their sums are off.", no_args_is_help=True, rich_markup_mode=None)


@costs.command()
def check(
    search: SearchName,
    children: Annotated[
        int, typer.Option(min=0, help="Random architectures to time, each twice. 0: only those timed before.")
    ] = 12,
    seed: Annotated[int, typer.Option(help="Another seed draws other architectures.")] = 0,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Compare predicted with measured latency on whole architectures that no cost was derived from.

    They are timed in the search's engine, in turns with the parent, on a machine that should do nothing else. The last
    line says by how much two timings of one architecture differ: no prediction is better.

    Example: nas costs check demo --children 12
    """
    found = nas.load(search, db=db, progress=talk_beside(as_json)).check_costs(children, seed=seed)
    print_cost_check(found, as_json)


@costs.command()
def export(
    search: SearchName,
    out: Annotated[Path, typer.Option("--out", help="The JSON file to write.")],
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Write the times that a search was solved on, for a job of another machine.

    Example: nas costs export demo --out costs.json
    """
    check_output(out)
    print_cost_table(nas.load(search, db=db, progress=talk_beside(as_json)).export_costs(out), out, as_json)


def measure(
    job: Annotated[Path, typer.Argument(help="The job file; its parent and its options say what is measured.")],
    out: Annotated[Path, typer.Option("--out", help="The JSON file to write; an unfinished one is completed.")],
    engine: Annotated[str | None, typer.Option(help="torch, llama_cpp, ... Default: the job's.")] = None,
    dtype: Annotated[str | None, typer.Option(help="The type of the weights, by the engine's name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the costs of a job's options on this machine, for a search on another.

    Copy the parent's folder and the job here, run this, and take the file back. There the job names it:
    `measure: {table: costs.json}`.

    Example: nas measure job.yaml --engine llama_cpp --dtype q8_0 --out costs.json
    """
    table = nas.measure(job, out, engine=engine, dtype=dtype, progress=talk_beside(as_json))
    print_cost_table(table, out, as_json)
