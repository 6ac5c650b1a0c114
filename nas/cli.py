"""The command line: each command parses its arguments, calls one function, and prints what it returns.

Heavy imports happen inside the commands that need them, the database's among them, so that each answers at once. How
they end, in mistakes as well, is `endings.py`'s.
"""

import signal
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from nas import units
from nas.arguments import AsJson, Db
from nas.cli_cluster import logs, status, stop, submit
from nas.endings import Commands
from nas.printed import (
    console,
    plain,
    print_answer,
    print_comparison,
    print_dependency,
    print_front,
    print_json,
    print_layers,
    print_outcome,
    print_trial,
    print_trials,
)
from nas.runs import LONGEST, LOW_SHARE, WINDOW

if TYPE_CHECKING:
    from db import models
    from db.store import Store


app = typer.Typer(
    name="nas",
    cls=Commands,
    help="Hardware-aware architecture search for LLMs: bring a model, text, hardware and a budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SearchName = Annotated[str, typer.Argument(help="A search: its name, its id, or the start of its id.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"puzzle-nas {metadata.version('puzzle-nas')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """What `nas` itself takes, before any command."""


@app.command()
def init() -> None:
    """Print a commented job file that runs as it stands.

    Example: nas init > job.yaml
    """
    from nas import config

    typer.echo(config.template(), nl=False)


@app.command()
def search(
    job: Annotated[Path, typer.Argument(help="The job file; `nas init` prints one.")],
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Run a search: distil blocks, score them, measure them, solve, heal and export the child.

    Run it again after a kill and it goes on where it stopped; after the end, and it only tells the answer again.

    Example: nas search job.yaml
    """
    from nas import config

    request = config.load(job)
    from nas import quiet  # noqa: F401  (silences libraries before they load)
    from nas.pipeline import search as run

    talk = Console(stderr=True) if as_json else console
    with _store(db) as store:
        print_outcome(run(request, store, talk), as_json)


@app.command()
def solve(
    search: Annotated[str | None, typer.Argument(help="A search: its name, its id, or the start of its id.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="Instead of a search: a JSON file of options measured elsewhere.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="Limits: latency=50%,memory=1.5GiB; a table's are numbers. May be repeated."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Score to minimise, kl or lm_loss. Default: the search's own.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="What to minimise in a table: a path, like metrics.kl_div.")
    ] = None,
    maximise: Annotated[bool, typer.Option("--maximise", help="More of a table's objective is better.")] = False,
    gap: Annotated[
        float | None, typer.Option(min=0, help="How far from the optimum, as a share. Default: the search's own; 1e-6.")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds to solve in. Default: the search's own; 60.")
    ] = None,
    refine: Annotated[
        int | None, typer.Option(min=1, help="Measure so many whole architectures, and take the best.")
    ] = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Solve a measured search for another budget, or a table. Seconds: nothing is measured or trained.

    With --refine, whole architectures are assembled and measured, so that what the sum of scores misses is learnt.

    Example: nas solve stories --budget latency=50%
    """
    of_search = {"--metric": metric, "--refine": refine, "--db": db}
    _one_source(search, table, of_search, {"--objective": objective, "--maximise": maximise})
    if table is not None:
        from nas.solve_table import solve_table

        print_answer(solve_table(table, objective, budget or (), maximise, gap, time_limit), as_json)
        return
    if not budget:
        raise ValueError("a search is solved for a --budget, like latency=50% or memory=1.5GiB")
    limits, talk = units.parse_budget(",".join(budget)), Console(stderr=True) if as_json else console
    with _store(db) as store:
        found = store.find_search(search or "")
        trial = _solved(store, found, limits, refine, talk, metric, gap, time_limit)
        if as_json:
            print_json(plain(trial))
        else:
            print_trial(found, trial)
            build = "put this budget in the job and run `nas search`"
            if refine is not None:
                asked = ",".join(f"{metric}={value}" for metric, value in trial.budget.items())
                build = f"`nas compare {found.name} --budget {asked} --evaluations {refine} --heal`, with the others"
            console.print(f"\nTo build it, {build}. Details: nas show {trial.id}", soft_wrap=True)


@app.command()
def pareto(
    search: SearchName,
    cost: Annotated[str, typer.Option(help="latency, ttft, decode, memory or parameters.")] = "latency",
    budget: Annotated[str | None, typer.Option("--budget", help="Other limits to hold, like memory=2GiB.")] = None,
    points: Annotated[int, typer.Option(min=2, help="Points along the front.")] = 20,
    plot: Annotated[Path | None, typer.Option(help="Write the plot to this .svg or .png file.")] = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """The whole front of score against a cost.

    Example: nas pareto stories --cost latency --plot front.svg
    """
    from nas.front import front_of
    from nas.solve import measured

    with _store(db) as store:
        known = measured(store, store.find_search(search))
        found = front_of(known, cost, units.parse_budget(budget) if budget else (), points)
    if plot is not None:
        from nas.report import write_front

        write_front(known, cost, found, plot)
        console.print(f"plot: {plot}")
    if as_json:
        print_json([vars(point) for point in found])
        return
    print_front(found, cost)


@app.command()
def compare(
    search: SearchName,
    budget: Annotated[str | None, typer.Option("--budget", help="Limits. Default: the search's own.")] = None,
    evaluations: Annotated[
        int, typer.Option(min=1, help="Whole models that evolution and refining may run each.")
    ] = 100,
    seeds: Annotated[int, typer.Option(min=0, help="Random architectures.")] = 3,
    heal: Annotated[bool, typer.Option(help="Heal every answer, all with as many tokens.")] = False,
    time: Annotated[bool, typer.Option("--time", help="Time every answer beside the parent.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write the plot to this .svg or .png file.")] = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Hold the MIP's answer against the baselines', each assembled and measured.

    What evolution tried is an Optuna study in the same database: optuna-dashboard shows it.

    Example: nas compare stories --budget latency=50% --evaluations 200
    """
    from nas import quiet  # noqa: F401
    from nas.compare import Asked
    from nas.compare import compare as run
    from nas.report.plots import file_format
    from nas.report.versus import write_comparison

    if plot is not None:
        file_format(plot)  # before the work rather than after
    asked = Asked(units.parse_budget(budget) if budget else (), evaluations, seeds, heal, time)
    with _store(db) as store:
        lines = run(store, store.find_search(search), asked, Console(stderr=True) if as_json else console)
    if plot is not None:
        write_comparison(lines, plot)
    print_comparison(lines, as_json)


@app.command()
def trials(
    search: Annotated[str | None, typer.Argument(help="Only this search's trials.")] = None,
    where: Annotated[
        str | None, typer.Option(help='A condition on columns, like "decode_s < 0.004 and kl < 0.3".')
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Column to sort by.")] = None,
    descending: Annotated[bool, typer.Option("--descending", help="Largest first.")] = False,
    limit: Annotated[int | None, typer.Option(help="At most this many.")] = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Query the trials.

    Example: nas trials --where "latency_ratio < 0.6 and kl < 0.3" --sort kl
    """
    with _store(db) as store:
        search_id = store.find_search(search).id if search else None
        found = store.trials(search_id, where=where, sort=sort, descending=descending, limit=limit)
        names = {known.id: known.name for known in store.searches()}
    if as_json:
        print_json([plain(trial) for trial in found])
        return
    print_trials(found, names)


@app.command()
def show(
    trial: Annotated[int, typer.Argument(help="A trial's number, as `nas trials` prints it.")],
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """One architecture, layer by layer, predicted and measured.

    Example: nas show 3
    """
    from nas.show import layers_of

    with _store(db) as store:
        found = store.trial(trial)
        known = store.find_search(found.search_id)
        layers = layers_of(store, known, found)
    if as_json:
        print_json(plain(found) | {"layers": [vars(layer) for layer in layers]})
        return
    print_layers(layers)
    print_trial(known, found)


@app.command()
def export(
    trial: Annotated[int, typer.Argument(help="A trial that was built, by its number.")],
    format: Annotated[str, typer.Option("--format", help="hf or decilm.")] = "hf",
    out: Annotated[Path, typer.Option("--out", help="The folder to write; it must not exist or be empty.")] = ...,  # type: ignore[assignment]
    db: Db = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write a built trial's child as a directory an inference engine loads, reload it and compare logits.

    Example: nas export 3 --format hf --out ./child
    """
    from nas import quiet  # noqa: F401
    from nas.deliver import export_trial

    with _store(db) as store:
        done = export_trial(store, trial, format, out)
    if as_json:
        print_json({"folder": str(done.folder), "format": done.format, "files": done.files, "notes": done.notes,
                     "max_logit_difference": done.max_logit_difference})  # fmt: skip
        return
    console.print(f"{done.folder}: {done.format}, reloaded; logits differ by at most {done.max_logit_difference:.1e}")
    for note in done.notes:
        console.print(note)


@app.command()
def report(
    search: SearchName,
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    trial: Annotated[
        int | None, typer.Option(help="The trial to show beside the parent. Default: the latest built.")
    ] = None,
    db: Db = None,
) -> None:
    """Write one self-contained HTML file that opens offline.

    Example: nas report stories --out report.html
    """
    from nas.report import write_report

    with _store(db) as store:
        written = write_report(store, store.find_search(search), out, store.trial(trial) if trial else None)
    console.print(f"report: {written}")


@app.command()
def dependency(
    parent: Annotated[str, typer.Argument(help="embedded, the folder of a checkpoint, or a hub id.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Text: a file or a glob; may be repeated. Default: Python's own sources.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of it to read.")] = 8192,
    longest: Annotated[int, typer.Option(min=2, help="FFNs fused into one, at most.")] = LONGEST,
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Of all pairs, those that count as low.")] = LOW_SHARE,
    window: Annotated[int, typer.Option(min=2, help="Blocks run in parallel.")] = WINDOW,
    html: Annotated[Path | None, typer.Option(help="Write the heat-map to this HTML file too.")] = None,
    as_json: AsJson = False,
) -> None:
    """How much each block depends on each one before it, and which neighbours that offers to fuse or run in parallel.

    Example: nas dependency embedded --html dependency.html
    """
    from nas import quiet  # noqa: F401
    from nas.dependency import dependency_of

    found = dependency_of(parent, data or (), tokens, longest, share, window)
    if html is not None:
        from nas.report.dependency_page import write_dependency

        write_dependency(found, html)
    print_dependency(found, as_json)


for command in (submit, status, logs, stop):
    app.command()(command)


def main() -> None:
    """The `nas` command."""
    # A stopped job is asked to end with SIGTERM, and a shell's background jobs start deaf to Ctrl-C: both end alike
    # here, the search marked as interrupted.
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.default_int_handler)
    app()


def _store(db: str | None) -> "AbstractContextManager[Store]":
    from db.store import Store  # It loads SQLAlchemy.

    return Store.open(db)


def _solved(
    store: "Store", search: "models.Search", limits: tuple[units.Limit, ...], refine: int | None, talk: Console,
    metric: str | None, gap: float | None, time_limit_s: float | None,
) -> "models.Trial":  # fmt: skip
    """By the sum of scores, or past it."""
    if refine is not None:
        from nas import quiet  # noqa: F401
        from nas.refined import solve_refined

        return solve_refined(store, search, limits, refine, talk, metric=metric, gap=gap, time_limit_s=time_limit_s)
    from nas.solve import measured, trial_row
    from nas.solve import solve as solve_for

    known = measured(store, search, metric)
    return store.add_trial(trial_row(known, solve_for(known, limits, gap, time_limit_s), limits, None))


def _one_source(search: str | None, table: Path | None, of_search: dict[str, Any], of_table: dict[str, Any]) -> None:
    """What is solved is a search or a table; each has options that mean nothing to the other."""
    if (search is None) == (table is None):
        given = "not both" if table else "neither is given"
        raise ValueError(f"name a search, or a table that was measured elsewhere with --table FILE.json: {given}")
    for option, value in (of_search if table else of_table).items():
        if value:
            raise ValueError(f"{option} goes with {'a search, not with --table' if table else '--table, not a search'}")


if __name__ == "__main__":
    main()
