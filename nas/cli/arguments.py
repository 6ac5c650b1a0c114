"""Arguments that several commands take."""

from typing import Annotated

import typer

_DB_HELP = "Database: a file or an SQLAlchemy URL. Default: $NAS_DB, else nas.db in $NAS_HOME or ~/.puzzle-nas."
Db = Annotated[str | None, typer.Option("--db", help=_DB_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SearchName = Annotated[str, typer.Argument(help="A search: its name, its id, or the start of its id.")]


def _trial_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise typer.BadParameter(f"{text!r} is not the number of a trial; `nas trials` lists them")
    return int(text)


TrialNumber = Annotated[
    int, typer.Argument(help="A trial's number, as `nas trials` prints it.", parser=_trial_number, metavar="TRIAL")
]
