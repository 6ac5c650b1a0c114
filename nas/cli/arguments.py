"""Arguments that several commands take, and the store they open."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from db.connect import Access
    from db.store import Store

_DB_HELP = "Database: a file or an SQLAlchemy URL. Default: $NAS_DB, else nas.db in $NAS_HOME or ~/.puzzle-nas."
Db = Annotated[str | None, typer.Option("--db", help=_DB_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SearchName = Annotated[str, typer.Argument(help="A search: its name, its id, or the start of its id.")]


def open_store(db: str | None, access: "Access" = "create") -> "AbstractContextManager[Store]":
    """The store that `Db` names. Only commands that run searches create it if it is missing."""
    from db.patience import Patience
    from db.store import Store  # It loads SQLAlchemy.

    return Store.open(db, access, Patience(told=lambda words: typer.echo(words, err=True)))


def _trial_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise typer.BadParameter(f"{text!r} is not the number of a trial; `nas trials` lists them")
    return int(text)


TrialNumber = Annotated[
    int, typer.Argument(help="A trial's number, as `nas trials` prints it.", parser=_trial_number, metavar="TRIAL")
]
