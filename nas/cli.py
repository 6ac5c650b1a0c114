"""The command line: each command parses its arguments, calls one function, and prints what it returns.

Heavy imports happen inside the commands that need them, the database's among them, so that each answers at once. How
they end, in mistakes as well, is `endings.py`'s.
"""

import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.arguments import AsJson, Db, SearchName, TrialNumber, open_store
from nas.cli_cluster import logs, status, stop, submit
from nas.cli_solve import compare, pareto, pool, solve
from nas.endings import Commands, end_on_signals
from nas.errors import UsageError
from nas.output_files import check_output
from nas.printed import (
    answered,
    console,
    plain,
    print_deleted,
    print_dependency,
    print_json,
    print_layers,
    print_outcome,
    print_trial,
    print_trials,
    talk_beside,
)
from nas.progress import loading
from nas.runs import LONGEST, LOW_SHARE, WINDOW

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from db import models

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
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from: its traceback.")] = False,
) -> None:
    """The options of `nas` itself, before any command."""


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
    remeasure: Annotated[
        bool,
        typer.Option(
            "--remeasure", help="Measure all times of blocks again on this machine, and noisy times of children."
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
    from nas import config

    request, talk = config.load(job), talk_beside(as_json)
    with loading(talk, f"search {request.name}"):
        from nas.preflight import check

        check(request)
        from nas import quiet  # noqa: F401  (silences libraries before they load)
        from nas.pipeline import search as run

    with open_store(db) as store:
        print_outcome(run(request, store, talk, remeasure), as_json)


app.command()(solve)
app.command()(pareto)
app.command()(pool)
app.command()(compare)


@app.command()
def trials(
    search: Annotated[str | None, typer.Argument(help="Only this search's trials.")] = None,
    where: Annotated[
        str | None,
        typer.Option(
            help='A condition on columns, like "decode_s < 0.004 and kl < 0.3"; --json shows all of them. In seconds '
            "(_s), joules (_j), bytes, nats a token (kl, lm_loss), shares (latency_ratio 0.6)."
        ),
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Column to sort by; trials without a value come last.")] = None,
    descending: Annotated[bool, typer.Option("--descending", help="Largest first.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many.")] = None,
    ids: Annotated[str | None, typer.Option(help="Only trials with these numbers, like 3,5,8-12.")] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the trials that would be listed; see above.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Query the trials, or delete them.

    --delete needs a search, --where or --ids. It shows the trials and asks first. A child in the database's own home
    is deleted with its last trial. Exported folders and all measurements of blocks stay, so the search can be solved
    again.

    Example: nas trials --where "latency_ratio < 0.6 and kl < 0.3" --sort kl
    """
    if delete and search is None and where is None and ids is None:
        raise UsageError("--delete: say which trials: name a search, or give --where or --ids")
    if yes and not delete:
        raise UsageError("--yes goes with --delete")
    with open_store(db, "write" if delete else "read") as store:
        search_id = None if search is None else store.find_search(search).id
        found = store.trials(search_id, where, sort, descending, None if ids else limit)
        if ids is not None:
            from nas.forget import Numbers

            found = Numbers.parse(ids).pick(found)[:limit]
        searches = {known.id: known for known in store.searches()}
        names = {known.id: known.name for known in searches.values()}
        is_asked = search is not None or where is not None or ids is not None
        none = f"no trials {'match' if is_asked else 'yet'} in {store.place}"
        if delete:
            from nas.forget import delete_trials

            print_trials(found, names, none, talk_beside(as_json))
            if found and not _may_delete(found, searches, yes):
                raise typer.Exit(1)
            print_deleted(delete_trials(store, found, searches), as_json)
            return
    if as_json:
        print_json([plain(trial) for trial in found])
        return
    print_trials(found, names, none)


def _may_delete(found: "Sequence[models.Trial]", searches: "Mapping[str, models.Search]", yes: bool) -> bool:
    """Whether the user confirms. Raises UsageError if there is no terminal to ask on."""
    for search in {trial.search_id: searches[trial.search_id] for trial in found}.values():
        if search.status == "running":
            typer.echo(
                f"search {search.name} ({search.id}) is running, or was killed; if it runs, it fails without its trial",
                err=True,
            )
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("--delete: there is no terminal to ask on; give --yes to delete them")
    if typer.confirm(f"delete {'these' if len(found) > 1 else 'this'}?", err=True):
        return True
    typer.echo("nothing was deleted", err=True)
    return False


@app.command()
def show(
    trial: TrialNumber,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Show one architecture, layer by layer, predicted and measured.

    Example: nas show 3
    """
    from nas.show import layers_of

    with open_store(db, "read") as store:
        found = store.trial(trial)
        known = store.find_search(found.search_id)
        layers = layers_of(store, known, found)
    if as_json:
        print_json(answered(known, found) | {"layers": [vars(layer) for layer in layers]})
        return
    print_layers(layers)
    print_trial(known, found)


@app.command()
def build(
    trial: TrialNumber,
    time: Annotated[bool, typer.Option(help="Time the child beside the parent.")] = True,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Build a trial's child: assemble, heal, evaluate and time it, as the search's job says.

    A trial that is built already is printed again, and no work is done.

    Example: nas build 3
    """
    from nas.api import of_trial

    built = of_trial(trial, db=db, progress=talk_beside(as_json)).build(trial, time=time)
    if as_json:
        print_json(built.to_dict())
        return
    print_trial(built.search_row, built.row)
    console.print(f"\nTo export it: nas export {built.id} --out DIR", soft_wrap=True)


@app.command()
def export(
    trial: TrialNumber,
    format: Annotated[str, typer.Option("--format", help="hf or decilm.")] = "hf",
    out: Annotated[Path, typer.Option("--out", help="The folder to write; new, or empty.")] = ...,  # type: ignore[assignment]
    db: Db = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Export a built trial's child for an inference engine.

    The command reloads the directory that it wrote, and compares logits with the child's.

    Example: nas export 3 --format hf --out ./child
    """
    from nas.api import of_trial

    done = of_trial(trial, db=db, progress=talk_beside(as_json)).export(trial, out, format=format)
    if as_json:
        print_json({"folder": str(done.folder), "format": done.format, "files": done.files, "notes": done.notes,
                     "max_logit_difference": done.max_logit_difference})  # fmt: skip
        return
    console.print(
        f"{done.folder}: {done.format}, reloaded; logits differ by at most {done.max_logit_difference:.1e}",
        soft_wrap=True,
    )
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
    check_output(out)  # before the work rather than after
    with loading(console, f"report {search}"):
        from nas.api import load

    written = load(search, db=db, progress=console).report(out, trial)
    console.print(f"report: {written}", soft_wrap=True)


@app.command()
def dependency(
    parent: Annotated[str, typer.Argument(help="embedded, the folder of a checkpoint, or a hub id.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Text: a file or a glob; may be repeated. Default: Python's own sources.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of the text to read.")] = 8192,
    longest: Annotated[int, typer.Option(min=2, help="Longest run of FFNs to fuse into one.")] = LONGEST,
    share: Annotated[
        float,
        typer.Option(min=0.01, max=1, help="Share of all pairs of blocks that counts as low dependency."),
    ] = LOW_SHARE,
    window: Annotated[int, typer.Option(min=2, help="Neighbouring blocks that run in parallel.")] = WINDOW,
    html: Annotated[Path | None, typer.Option(help="Write the heat-map to this HTML file too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much each block of a parent depends on those before it.

    Neighbours that hardly depend on each other can be fused or run in parallel.

    Example: nas dependency embedded --html dependency.html
    """
    talk = talk_beside(as_json)
    if html is not None:
        check_output(html)
    with loading(talk, f"block dependency of {parent}"):
        from nas import quiet  # noqa: F401
        from nas.dependency import dependency_of

    found = dependency_of(parent, data or (), tokens, longest, share, window, talk)
    if html is not None:
        from nas.report.dependency_page import write_dependency

        write_dependency(found, html)
    print_dependency(found, as_json)


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
