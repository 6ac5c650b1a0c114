"""The command that lists and deletes trials. `nas/cli/main.py` registers it."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

import nas
from nas.cli.arguments import AsJson, Db
from nas.cli.printed import print_deleted, print_json, print_trials
from nas.errors import UsageError
from nas.terminal.console import talk_beside
from nas.view.plain import plain

if TYPE_CHECKING:
    from nas.trial_query import TrialList, TrialQuery


@dataclass(frozen=True)
class TrialsRequest:
    """The arguments of `nas trials`."""

    query: "TrialQuery"
    delete: bool
    yes: bool
    db: str | None
    as_json: bool

    def check(self) -> None:
        """Raises UsageError if --delete would delete all trials, or if --yes is given without --delete."""
        if self.delete and not self.query.names_trials:
            raise UsageError("--delete would delete all trials; name a search, or give --where or --ids")
        if self.yes and not self.delete:
            raise UsageError("--yes does nothing without --delete; give both")


def trials(
    search: Annotated[str | None, typer.Argument(help="Only this search's trials.")] = None,
    where: Annotated[
        str | None,
        typer.Option(
            help='A condition on columns, like "decode_s < 0.004 and kl < 0.3"; --json shows all columns. Units: '
            "seconds (_s), joules (_j), bytes, nats per token (kl, lm_loss), shares (latency_ratio 0.6)."
        ),
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Column to sort by; trials without a value come last.")] = None,
    descending: Annotated[bool, typer.Option("--descending", help="Largest first.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many.")] = None,
    ids: Annotated[str | None, typer.Option(help="Only trials with these numbers, like 3,5,8-12.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the trials instead of listing them.")] = False,
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
    _trials(TrialsRequest(nas.TrialQuery(search, where, sort, descending, ids, limit), delete, yes, db, as_json))


def _trials(asked: TrialsRequest) -> None:
    asked.check()
    talk = talk_beside(asked.as_json)
    if asked.delete:
        deleted = nas.delete_trials(asked.query, lambda trials: _may_delete(trials, asked), asked.db, talk)
        if deleted is None:
            raise typer.Exit(1)
        print_deleted(deleted, asked.as_json)
        return
    trials = nas.find_trials(asked.query, asked.db, talk)
    if asked.as_json:
        print_json([plain(trial) for trial in trials.trials])
        return
    print_trials(trials, asked.query)


def _may_delete(trials: "TrialList", asked: TrialsRequest) -> bool:
    """Whether the user confirms, who sees the trials first. Raises UsageError if there is no terminal to ask on."""
    print_trials(trials, asked.query, talk_beside(asked.as_json))
    for search in {trial.search_id: trials.searches[trial.search_id] for trial in trials.trials}.values():
        if search.status == "running":
            typer.echo(
                f"search {search.name} ({search.id}) is running, or was killed; if it runs, it fails without the trial",
                err=True,
            )
    count = len(trials.trials)
    if asked.yes or count == 0:
        return True
    if not sys.stdin.isatty():
        raise UsageError("--delete: there is no terminal to ask on; give --yes to delete them")
    if typer.confirm(f"delete {'these' if count > 1 else 'this'}?", err=True):
        return True
    typer.echo("nothing was deleted", err=True)
    return False
