"""The database that a question names, opened; while another process locks it, the wait is shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from db.connect import Access
from db.patience import Patience
from db.store import Store
from nas.terminal.console import Progress, Terminal, console_of
from nas.terminal.console import console as standard_output


@contextmanager
def opened(db: str | Path | None, access: Access, progress: Progress = True) -> Iterator[Store]:
    """The store in `db`: a file or an SQLAlchemy URL; None: $NAS_DB, else `nas.db` in $NAS_HOME or ~/.puzzle-nas."""
    # Results go to standard output.
    console = Terminal(stderr=True) if progress is standard_output else console_of(progress)
    with Store.open(db, access, Patience(told=lambda words: console.print(words, soft_wrap=True))) as store:
        yield store
