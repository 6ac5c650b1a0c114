"""Whether all nodes of a cluster see one folder: what one worker writes there, others read."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from nas.cluster.tasks import Cluster
from nas.errors import SharedHomeError

_OURS = "driver"


@dataclass(frozen=True)
class _Seen:
    """What a worker found: the name of the file that it wrote, or the reason why there is none."""

    file: str = ""
    problem: str = ""


def check_shared(cluster: Cluster, home: Path, *, cpus: float = 1, gpus: float = 0) -> None:
    """Raise SharedHomeError where a node that tasks of this size run on does not read what is written to `home` here,
    or writes what is not read here. Nothing is done for a Ray of this machine alone."""
    if cluster.is_here:
        return
    home.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".seen-", dir=home) as name:
        folder = Path(name)
        (folder / _OURS).touch()
        seen = cluster.on_each_node(_look, folder, cpus=cpus, gpus=gpus)
        apart = {
            node: found.problem or "it writes its files elsewhere"
            for node, found in seen
            if not found.file or not (folder / found.file).exists()
        }
    if apart:
        told = "; ".join(f"{node}: {problem}" for node, problem in apart.items())
        raise SharedHomeError(
            f"home {home} is not one folder on all nodes: {told}. Every node must mount it at this path; or set "
            "`home`, or NAS_HOME, to a folder that they share"
        )


def _look(folder: Path) -> _Seen:
    """Runs on a worker."""
    if not (folder / _OURS).exists():
        return _Seen(problem="it does not see a file that was just written there")
    written = uuid.uuid4().hex
    try:
        (folder / written).touch()
    except OSError as error:
        return _Seen(problem=f"it cannot write there: {error.strerror}")
    return _Seen(written)
