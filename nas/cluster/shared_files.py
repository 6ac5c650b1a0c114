"""Whether all nodes of a cluster see the files they work on: others read what one worker writes, all read one parent.

Nothing is asked of a Ray of this machine alone.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from blocklib.errors import CheckpointError
from blocklib.parent import Parent
from blocklib.stored_weights import StoredWeights
from nas.cluster.tasks import Cluster
from nas.errors import SharedFilesError

Value = TypeVar("Value")
Seen = TypeVar("Seen")

_OURS = "driver"
_PATIENCE_S = 120.0
"""How long a node may take to start a worker and to look."""


def check_home(cluster: Cluster, home: Path) -> None:
    """Raise SharedFilesError, naming the nodes, where one of them does not read what is written to `home` here, or
    writes what is not read here."""
    if cluster.is_here:
        return
    home.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".seen-", dir=home) as name:
        folder = Path(name)
        folder.chmod(home.stat().st_mode & 0o777)  # Workers may be of another user.
        (folder / _OURS).touch()
        told = _problems(cluster, _write, folder, lambda written: _problem(folder, written))
    if told:
        raise SharedFilesError(
            f"home {home} must be one folder that every node reads and writes, and {told}. Mount it at this path "
            "there, or set `home`, or NAS_HOME, to a folder that all share"
        )


def check_parent(cluster: Cluster, parent: Parent) -> None:
    """Raise SharedFilesError, naming the nodes, where one of them does not read the same files at the same place."""
    if cluster.is_here or not isinstance(parent.weights, StoredWeights):
        return
    if told := _problems(cluster, _read, parent.weights, lambda problem: problem):
        raise SharedFilesError(
            f"every node must read the parent's files, and {told}. Put the parent into a folder that all nodes see at "
            "one path, in the home for example"
        )


def _problems(cluster: Cluster, work: Callable[[Value], Seen], value: Value, problem_of: Callable[[Seen], str]) -> str:
    """The nodes, each with what is wrong there; empty where nothing is."""
    found = [
        (node, f"does not answer within {_PATIENCE_S:g} s" if seen is None else problem_of(seen))
        for node, seen in cluster.on_each_node(work, value, _PATIENCE_S)
    ]
    return "; ".join(f"{node} {problem}" for node, problem in found if problem)


@dataclass(frozen=True)
class _Written:
    """The name of the file that a worker wrote, or the reason why there is none."""

    file: str = ""
    problem: str = ""


def _problem(folder: Path, written: _Written) -> str:
    if written.file and not (folder / written.file).exists():
        return "writes what is not seen here"
    return written.problem


def _write(folder: Path) -> _Written:
    """Runs on a worker."""
    name = uuid.uuid4().hex
    try:
        if not (folder / _OURS).exists():
            return _Written(problem="does not see a file that was just written there")
        (folder / name).touch()
    except OSError as error:
        return _Written(problem=f"cannot use it: {error.strerror}")
    return _Written(name)


def _read(weights: StoredWeights) -> str:
    """Runs on a worker: the problem, if any."""
    try:
        weights.check()
    except CheckpointError as error:
        return f"does not: {error}"
    return ""
