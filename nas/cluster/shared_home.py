"""Whether all nodes of a cluster see one folder: what one worker writes there, others read."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from nas.cluster.tasks import Cluster
from nas.errors import SharedHomeError

_OURS = "driver"
_PATIENCE_S = 120.0
"""How long a node may take to start a worker and to look."""


@dataclass(frozen=True)
class _Seen:
    """The name of the file that a worker wrote, or the reason why there is none."""

    file: str = ""
    problem: str = ""


def check_shared(cluster: Cluster, home: Path) -> None:
    """Raise SharedHomeError, naming the nodes, where one of them does not read what is written to `home` here, or
    writes what is not read here. Nothing is done for a Ray of this machine alone."""
    if cluster.is_here:
        return
    home.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".seen-", dir=home) as name:
        folder = Path(name)
        folder.chmod(home.stat().st_mode & 0o777)  # Workers may be of another user.
        (folder / _OURS).touch()
        problems = [
            (node, _problem(folder, seen)) for node, seen in cluster.on_each_node(_look, folder, patience_s=_PATIENCE_S)
        ]
    if told := "; ".join(f"{node} {problem}" for node, problem in problems if problem):
        raise SharedHomeError(
            f"home {home} must be one folder that every node reads and writes, and {told}. Mount it at this path "
            "there, or set `home`, or NAS_HOME, to a folder that all share"
        )


def _problem(folder: Path, seen: _Seen | None) -> str:
    if seen is None:
        return f"does not answer within {_PATIENCE_S:g} s"
    if seen.file and not (folder / seen.file).exists():
        return "writes what is not seen here"
    return seen.problem


def _look(folder: Path) -> _Seen:
    """Runs on a worker."""
    written = uuid.uuid4().hex
    try:
        if not (folder / _OURS).exists():
            return _Seen(problem="does not see a file that was just written there")
        (folder / written).touch()
    except OSError as error:
        return _Seen(problem=f"cannot use it: {error.strerror}")
    return _Seen(written)
