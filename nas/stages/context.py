"""One run of a job: the values that the driver's functions use in all stages."""

from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console

from db.store import Store
from nas.cluster.tasks import Cluster
from nas.files.process_folder import ProcessFolder
from nas.stages.prepare import Job
from nas.text.tokens import Split


class Shared:
    """The values that every task reads, put where workers can see it when the first task needs it."""

    def __init__(self, job: Job, cluster: Cluster):
        self._job = job
        self._cluster = cluster
        self._parent: Any = None

    def __getitem__(self, name: Literal["parent"] | Split) -> Any:
        """A handle to "parent", or to a set of tokens by its name: its file. A worker gets the value if a field of its
        task is a handle."""
        if name != "parent":
            return self._job.tokens.files[name]
        if self._parent is None:
            self._parent = self._cluster.share(self._job.parent)
        return self._parent


@dataclass(frozen=True)
class Context:
    """A job, where its rows are kept, where its work runs and is reported, the values that workers share, and a folder
    that all of them see for as long as it runs."""

    job: Job
    store: Store
    cluster: Cluster
    console: Console
    shared: Shared
    folder: ProcessFolder

    @staticmethod
    def of(job: Job, store: Store, cluster: Cluster, console: Console) -> "Context":
        return Context(job, store, cluster, console, Shared(job, cluster), ProcessFolder(job.home, "activations"))
