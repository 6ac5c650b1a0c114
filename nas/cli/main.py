"""The command line: each command parses its arguments, calls the Python API, and prints the answer.

The Python API loads libraries only when they are needed, so each command answers at once. `nas/terminal/exits.py`
decides how a command ends, after an error as well.
"""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

import nas
from nas.cli.arguments import AsJson, Db, SearchName, TrialNumber
from nas.cli.cluster import logs, status, stop, submit
from nas.cli.costs import costs, measure
from nas.cli.evaluate import evaluate, print_evaluations
from nas.cli.export import export
from nas.cli.plan import plan
from nas.cli.precisions import precisions
from nas.cli.printed import print_dependency, print_json, print_layers, print_outcome, print_trial
from nas.cli.serving import bench, serve
from nas.cli.solve import compare, pareto, pool, solve
from nas.cli.trials import trials
from nas.cli.tune import tune
from nas.files.output import check_output
from nas.job.fusion_candidates import LONGEST, LOW_SHARE, WINDOW, Joining
from nas.terminal.console import console, talk_beside
from nas.terminal.exits import Commands, end_on_signals

app = typer.Typer(
    name="nas",
    cls=Commands,
    help="Hardware-aware architecture search for LLMs: bring a model, text, hardware and a budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"puzzle-nas {metadata.version('puzzle-nas')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
) -> None:
    """The options of `nas` itself, before any command."""


@app.command()
def init() -> None:
    """Print a commented job file that runs without changes.

    Example: nas init > job.yaml
    """
    from nas.job import config

    typer.echo(config.template(), nl=False)


@app.command()
def search(
    job: Annotated[Path, typer.Argument(help="The job file; `nas init` prints one.")],
    remeasure: Annotated[
        bool,
        typer.Option(
            "--remeasure", help="Measure the times of all blocks again on this machine, and noisy times of children."
        ),
    ] = False,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Run a search, from the job file to the exported child.

    It distils blocks, scores and measures them, solves, heals and exports. An interrupted search resumes when you run
    it again. A finished one prints its answer again and does no work.

    Example: nas search job.yaml
    """
    outcome = nas.run(job, db=db, progress=talk_beside(as_json), remeasure=remeasure).outcome
    assert outcome is not None
    print_outcome(outcome, as_json)


app.command()(plan)
app.command()(tune)
app.command()(solve)
app.command()(pareto)
app.command()(pool)
app.command()(compare)
app.command()(trials)


@app.command()
def show(
    trial: TrialNumber,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Show one architecture, layer by layer, predicted and measured.

    Example: nas show 3
    """
    search = nas.of_trial(trial, db=db, progress=talk_beside(as_json))
    found = search[trial]
    layers, evaluations = search.layers(found), search.evaluations(found)
    if as_json:
        told = {"layers": [vars(layer) for layer in layers], "evaluations": [one.to_dict() for one in evaluations]}
        print_json(found.to_dict() | told)
        return
    print_layers(layers)
    print_trial(found.search_row, found.row)
    print_evaluations(evaluations)


@app.command()
def build(
    trial: TrialNumber,
    time: Annotated[bool, typer.Option(help="Time the child beside the parent.")] = True,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Build a trial's child: assemble, heal, evaluate and time it, as the search's job says.

    If the trial is already built, the command prints it and does no work.

    Example: nas build 3
    """
    built = nas.of_trial(trial, db=db, progress=talk_beside(as_json)).build(trial, time=time)
    if as_json:
        print_json(built.to_dict())
        return
    print_trial(built.search_row, built.row)
    console.print(f"\nTo export it: nas export {built.id} --out DIR", soft_wrap=True)


app.command()(export)


@app.command()
def report(
    search: SearchName,
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    trial: Annotated[
        int | None, typer.Option(help="The trial to show beside the parent. Default: the last one built.")
    ] = None,
    db: Db = None,
) -> None:
    """Write one self-contained HTML file that opens offline.

    Example: nas report stories --out report.html
    """
    check_output(out)  # before the work rather than after
    written = nas.load(search, db=db, progress=console).report(out, trial)
    console.print(f"report: {written}", soft_wrap=True)


@dataclass(frozen=True)
class DependencyRequest:
    """The arguments of `nas dependency`."""

    parent: str
    texts: tuple[str, ...]
    tokens: int
    longest: int
    share: float
    window: int
    html: Path | None
    as_json: bool


@app.command()
def dependency(
    parent: Annotated[str, typer.Argument(help="embedded, the folder of a checkpoint, a GGUF file, or a hub id.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Text: a file or a glob; may be repeated. Default: Python's own sources.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of the text to read.")] = 8192,
    longest: Annotated[int, typer.Option(min=2, help="Longest run of FFNs to fuse into one.")] = LONGEST,
    share: Annotated[
        float,
        typer.Option(min=0.01, max=1, help="Share of all pairs of blocks, least dependent first, that counts as low."),
    ] = LOW_SHARE,
    window: Annotated[int, typer.Option(min=2, help="Number of neighbouring blocks that run in parallel.")] = WINDOW,
    html: Annotated[Path | None, typer.Option(help="Write the heat-map to this HTML file too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much each block of a parent depends on those before it.

    Neighbours that hardly depend on each other can be fused or run in parallel.

    Example: nas dependency embedded --html dependency.html
    """
    _dependency(DependencyRequest(parent, tuple(data or ()), tokens, longest, share, window, html, as_json))


def _dependency(asked: DependencyRequest) -> None:
    talk = talk_beside(asked.as_json)
    if asked.html is not None:
        check_output(asked.html)
    joining = Joining(asked.longest, asked.share, asked.window)
    found = nas.dependency(asked.parent, asked.texts, tokens=asked.tokens, joining=joining, progress=talk)
    if asked.html is not None:
        from nas.report.dependency_page import write_dependency

        write_dependency(found, asked.html)
    print_dependency(found, asked.as_json)


app.command()(measure)
app.add_typer(costs, name="costs")
app.command()(precisions)
app.command()(evaluate)
app.command()(bench)
app.command()(serve)
app.command()(submit)
app.command()(status)
app.command()(logs)
app.command()(stop)


def main() -> None:
    """The `nas` command."""
    end_on_signals()
    app()


if __name__ == "__main__":
    main()
