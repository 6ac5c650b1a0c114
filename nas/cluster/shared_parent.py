"""Whether all nodes of a cluster read the files of one parent: each worker takes the weights that it needs there."""

from blocklib.errors import CheckpointError
from blocklib.parent import Parent
from blocklib.stored_weights import StoredWeights
from nas.cluster.tasks import Cluster
from nas.errors import SharedParentError

_PATIENCE_S = 120.0
"""How long a node may take to start a worker and to look."""


def check_parent_seen(cluster: Cluster, parent: Parent) -> None:
    """Raise SharedParentError, naming the nodes, where one of them does not read the same files at the same place.
    Nothing is done for a Ray of this machine alone."""
    if cluster.is_here or not isinstance(parent.weights, StoredWeights):
        return
    found = cluster.on_each_node(_look, parent.weights, _PATIENCE_S)
    silent = f"does not answer within {_PATIENCE_S:g} s"
    problems = [(node, silent if problem is None else problem) for node, problem in found]
    if told := "; ".join(f"{node}: {problem}" for node, problem in problems if problem):
        raise SharedParentError(
            f"every node reads the parent's files, and not all can. {told}. Put the parent into a folder that all "
            "nodes see at one path, in the home for example"
        )


def _look(weights: StoredWeights) -> str:
    """Runs on a worker: the problem, if any."""
    try:
        weights.check()
    except CheckpointError as error:
        return str(error)
    return ""
