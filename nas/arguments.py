"""Options that several commands take."""

from typing import Annotated

import typer

_DB_HELP = "Database: a file or an SQLAlchemy URL. Default: $NAS_DB, else nas.db in $NAS_HOME or ~/.puzzle-nas."
Db = Annotated[str | None, typer.Option("--db", help=_DB_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
