"""The command that lists and deletes trials. `nas/cli/main.py` registers it."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.arguments import AsJson, Db, open_store
from nas.cli.printed import print_deleted, print_json, print_trials
from nas.errors import UsageError
from nas.terminal.console import talk_beside
from nas.view.plain import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from db import models
    from db.store import Store


@dataclass(frozen=True)
class TrialsRequest:
    """The arguments of `nas trials`."""

    search: str | None
    where: str | None
    sort: str | None
    descending: bool
    limit: int | None
    ids: str | None
    delete: bool
    yes: bool
    db: str | None
    as_json: bool

    @property
    def names_trials(self) -> bool:
        """Whether it selects some trials, and not all."""
        return self.search is not None or self.where is not None or self.ids is not None

    def check(self) -> None:
        """Raises UsageError if --delete would delete all trials, or if --yes is given without --delete."""
        if self.delete and not self.names_trials:
            raise UsageError("--delete would delete all trials; name a search, or give --where or --ids")
        if self.yes and not self.delete:
            raise UsageError("--yes does nothing without --delete; give both")

    def find(self, store: "Store") -> "Sequence[models.TrialRow]":
        search_id = None if self.search is None else store.find_search(self.search).id
        found = store.trials(search_id, self.where, self.sort, self.descending, None if self.ids else self.limit)
        if self.ids is None:
            return found
        from nas.files.forget import Numbers

        return Numbers.parse(self.ids).pick(found)[: self.limit]


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
    _trials(TrialsRequest(search, where, sort, descending, limit, ids, delete, yes, db, as_json))


def _trials(asked: TrialsRequest) -> None:
    asked.check()
    with open_store(asked.db, "write" if asked.delete else "read") as store:
        found = asked.find(store)
        searches = {known.id: known for known in store.searches()}
        names = {known.id: known.name for known in searches.values()}
        none = f"no trials {'match' if asked.names_trials else 'yet'} in {store.place}"
        if asked.delete:
            from nas.files.forget import delete_trials

            print_trials(found, names, none, talk_beside(asked.as_json))
            if found and not _may_delete(found, searches, asked.yes):
                raise typer.Exit(1)
            print_deleted(delete_trials(store, found, searches), asked.as_json)
            return
    if asked.as_json:
        print_json([plain(trial) for trial in found])
        return
    print_trials(found, names, none)


def _may_delete(found: "Sequence[models.TrialRow]", searches: "Mapping[str, models.SearchRow]", yes: bool) -> bool:
    """Whether the user confirms. Raises UsageError if there is no terminal to ask on."""
    for search in {trial.search_id: searches[trial.search_id] for trial in found}.values():
        if search.status == "running":
            typer.echo(
                f"search {search.name} ({search.id}) is running, or was killed; if it runs, it fails without the trial",
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
