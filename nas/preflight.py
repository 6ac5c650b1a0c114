"""Checks of a job before anything is loaded, distilled or timed: by its parent's files, its sizes and this
machine.

Looks at the files first, which takes no torch; that is imported for what follows. Does no work of a search.
"""

from pathlib import Path

from blocklib.checkpoint import inspect
from blocklib.hub import folder_of
from nas.cluster import Cluster
from nas.errors import JobError
from nas.positions import check_positions
from nas.request import Request
from nas.tokenizer import check_tokenizer


def check(request: Request) -> None:
    """Raise a NasError that names the file or the key where a search of this request cannot end well.

    Checks that depend on this machine are left out if the work is done on a cluster.
    """
    _check(request, Cluster(request.ray.address).is_here)


def check_submitted(request: Request) -> None:
    """The same of a request that runs elsewhere, as far as its files are seen here; and no code of a checkpoint's."""
    if request.allow_remote_code:
        raise JobError(
            "allow_remote_code: a submitted job runs no code of a checkpoint's; leave it out, or run `nas search` on a "
            "machine of your own"
        )
    if Path(request.checkpoint).is_dir():
        _check(request, is_here=False)


def _check(request: Request, is_here: bool) -> None:
    folder = folder_of(request.checkpoint, code=request.allow_remote_code)
    checkpoint = inspect(folder)
    check_tokenizer(folder, request.allow_remote_code)
    if checkpoint.positions is not None:
        check_positions(request, checkpoint.positions)
    from nas import quiet  # noqa: F401  (silences libraries before they load)
    from nas.feasible import check_parent

    check_parent(request, checkpoint, is_here)
