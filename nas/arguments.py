"""What several commands take, and the store they open."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from db.store import Store

_DB_HELP = "Database: a file or an SQLAlchemy URL. Default: $NAS_DB, else nas.db in $NAS_HOME or ~/.puzzle-nas."
Db = Annotated[str | None, typer.Option("--db", help=_DB_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SearchName = Annotated[str, typer.Argument(help="A search: its name, its id, or the start of its id.")]


def open_store(db: str | None) -> "AbstractContextManager[Store]":
    """The store that `Db` names."""
    from db.patience import Patience
    from db.store import Store  # It loads SQLAlchemy.

    return Store.open(db, Patience(told=lambda words: typer.echo(words, err=True)))
