"""The commands about costs. `nas/cli/main.py` registers them."""

from pathlib import Path
from typing import Annotated

import typer

import nas
from nas.cli.arguments import AsJson
from nas.cli.printed import print_json
from nas.terminal.console import console, talk_beside


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
    if as_json:
        print_json(table.model_dump(mode="json"))
        return
    console.print(f"{out}: {len(table.geometries)} geometries on {table.hardware}", soft_wrap=True)
    console.print(f"in the job that builds: measure: {{table: {out.name}}}", soft_wrap=True, highlight=False)
