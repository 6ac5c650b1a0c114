"""The command that shows a search's child beside uniform precisions. `nas/cli/main.py` registers it."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

import nas
from nas.cli.arguments import AsJson, Db, SearchName
from nas.cli.printed import print_json
from nas.job.units import format_quantity
from nas.terminal.console import console, talk_beside


def precisions(
    search: SearchName,
    time: Annotated[bool, typer.Option(help="Time every file in the search's engine.")] = True,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Show the child of a search that chose precisions beside its parent in one precision throughout.

    The parent is stored in each precision of the search as llama.cpp's own quantiser writes it. Sizes are those of the
    files, header aside; KL and perplexity are on the evaluation text; times are taken in turns with the child.

    Example: nas precisions smollm2_bits
    """
    found = nas.load(search, db=db, progress=talk_beside(as_json)).precisions(time=time)
    if as_json:
        print_json({"trial": found.trial.id, "models": [asdict(row) for row in found.models]})
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("", "file", "bits", "KL", "perplexity", "prefill tok/s", "decode tok/s"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in found.models:
        rates = [
            "-" if rate is None else f"{rate:,.1f}" for rate in (row.prefill_tokens_per_s, row.decode_tokens_per_s)
        ]
        size = format_quantity("file", float(row.file_bytes))
        table.add_row(
            row.name, size, f"{row.bits_per_weight:.2f}", f"{row.kl:.4f}", f"{row.perplexity:.2f}", *rates,
            style="bold" if row.name.startswith("trial") else None,
        )  # fmt: skip
    console.print(table)
    console.print(f"\nto serve the child: nas serve {found.trial.id}", highlight=False)
