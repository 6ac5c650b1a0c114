"""The command that plans a search. `nas/cli/main.py` registers it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import nas
from nas.cli.arguments import AsJson
from nas.cli.printed import print_json
from nas.job.units import format_quantity
from nas.terminal.console import console, talk_beside

if TYPE_CHECKING:
    from nas.planning.plan import Plan, Planned


def plan(
    job: Annotated[Path, typer.Argument(help="The job file; its text need not be there.")],
    hardware: Annotated[
        str | None, typer.Option(help="GPUs to plan for, as h100, h100x8 or a100x2. Default: this machine.")
    ] = None,
    parent_config: Annotated[
        Path | None,
        typer.Option(help="The config.json of a parent that need not be here. Default: the job's own parent."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a search needs before it runs: memory, disk and time of every stage, and the settings that fit.

    It reads the job, the parent's configuration and the headers of its files; it loads no weight and no text.

    Example: nas plan job.yaml --hardware h100x8
    """
    found = nas.plan(job, hardware=hardware, parent_config=parent_config, progress=talk_beside(as_json))
    if as_json:
        print_json(_plain(found))
    else:
        _print(found)
    if not found.fits:
        raise typer.Exit(1)


def _print(found: "Plan") -> None:
    table = Table(box=None, header_style="dim", pad_edge=False)
    on_device = () if found.machine.is_cpu else ("GPU memory",)
    for column in ("", *on_device, "main memory", "disk", "time", "most of the memory"):
        table.add_column(column, justify="left" if column in ("", "most of the memory") else "right")
    for stage in found.stages:
        need = stage.need
        held = () if found.machine.is_cpu else (_bytes(need.device_bytes(found.machine)),)
        most = need.largest(found.machine)
        table.add_row(
            need.stage, *held, _bytes(need.main_bytes(found.machine)), _bytes(need.disk_bytes()) if need.disk else "-",
            _time(need.seconds(found.machine)), f"{most.what}, {_bytes(most.held_bytes)}",
        )  # fmt: skip
    console.print(f"{found.machine.name}, {_bytes(found.machine.device_bytes)} each" if not found.machine.is_cpu
                  else f"{found.machine.name}, {_bytes(found.machine.device_bytes)}", highlight=False)  # fmt: skip
    console.print(table)
    console.print(f"in all: {_time(found.seconds)}, {_bytes(found.disk_bytes)} on disk", highlight=False)
    for stage in found.stages:
        for line in _told(stage):
            console.print(line, highlight=False, soft_wrap=True)


def _told(stage: "Planned") -> list[str]:
    if stage.reason:
        return [
            f"{stage.need.stage} does not fit, and no setting that was tried makes it fit: most of it is {stage.reason}"
        ]
    if stage.changes:
        return [f"{stage.need.stage} fits with {stage.settings}"]
    return []


def _plain(found: "Plan") -> dict[str, Any]:
    machine = found.machine
    return {
        "machine": vars(machine),
        "seconds": found.seconds,
        "disk_bytes": found.disk_bytes,
        "fits": found.fits,
        "stages": [
            {
                "stage": stage.need.stage,
                "device_bytes": stage.need.device_bytes(machine),
                "main_bytes": stage.need.main_bytes(machine),
                "disk_bytes": stage.need.disk_bytes(),
                "tasks": stage.need.tasks.count,
                **vars(stage.need.work),
                "seconds": stage.need.seconds(machine),
                "held": [vars(held) for held in (*stage.need.once, *stage.need.each, *stage.need.main)],
                "changes": stage.changes,
                "reason": stage.reason,
            }
            for stage in found.stages
        ],
    }


def _bytes(count: float) -> str:
    return format_quantity("memory", count)


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"
