"""A gang: workers that start together and do one piece of work as the ranks of a torch process group (Ray Train).

A lost worker costs the gang what it did since its last checkpoint: Ray Train starts all of them again, and the work
looks for what it kept. Knows no work; `tasks.py` runs the process that waits for a gang.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.errors import NasError, ResourceError, WorkerError

_RESTARTS = 3
_START_S = 600
"""Ray Train gives a gang a minute to start, and tries again: on a busy machine workers take longer to load PyTorch."""


@dataclass(frozen=True)
class Gang:
    """How many workers, and what each has: cores, and one GPU or none."""

    workers: int
    cpus: int
    on_gpus: bool

    @staticmethod
    def on(nodes: Sequence[Mapping[str, float]], workers: int, on_gpus: bool) -> "Gang":
        """With as many cores each as the nodes can give to all at once; `nodes` as Ray names their resources.

        Raises ResourceError where they cannot hold so many.
        """
        places = [(int(node.get("CPU", 0)), int(node.get("GPU", 0)) if on_gpus else workers) for node in nodes]
        shares = sorted({cpus // among for cpus, _ in places for among in range(1, workers + 1)} - {0}, reverse=True)
        for share in shares:
            if sum(min(cpus // share, gpus) for cpus, gpus in places) >= workers:
                return Gang(workers, share, on_gpus)
        most = sum(min(cpus, gpus) for cpus, gpus in places) if on_gpus else sum(cpus for cpus, _ in places)
        needed = "a GPU and a core" if on_gpus else "a core"
        raise ResourceError(
            f"heal.workers: {workers} workers need {needed} each, and the nodes have that for {most}; give at most "
            f"that number"
        )

    def conductor(self, folder: Path, ends: type[NasError], on_worker: Callable[..., Any]) -> Callable[..., Any]:
        """A function that runs `on_worker` with its own arguments on every worker, and returns the value of the first.

        `folder` is one that all nodes see; Ray Train keeps its notes there. Errors of the class `ends` are such as all
        workers raise together: the work is not tried again after one.
        """

        def conduct(*arguments: Any) -> Any:
            return _conducted(self, folder, _Rank(on_worker, arguments, ends))

        return conduct


@dataclass(frozen=True)
class _Rank:
    """The work of one worker."""

    on_worker: Callable[..., Any]
    arguments: Sequence[Any]
    ends: type[NasError]

    def __call__(self) -> Any:
        try:
            return self.on_worker(*self.arguments)
        except self.ends as error:
            return error  # Ray Train starts a worker that raises again.


def _conducted(gang: Gang, folder: Path, rank: _Rank) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_S))
    folder.mkdir(parents=True, exist_ok=True)
    trainer = TorchTrainer(
        lambda: rank(),
        scaling_config=ScalingConfig(
            num_workers=gang.workers,
            use_gpu=gang.on_gpus,
            resources_per_worker={"CPU": gang.cpus, "GPU": int(gang.on_gpus)},
        ),
        run_config=RunConfig(storage_path=str(folder), failure_config=FailureConfig(max_failures=_RESTARTS)),
    )
    try:
        result: Any = trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error
    if isinstance(result.return_value, NasError):
        raise result.return_value
    return result.return_value


def _cause(error: Any) -> Exception:
    """The first worker's own exception; one that was lost has none."""
    raised = [getattr(failure, "_base_exc", None) for failure in getattr(error, "worker_failures", {}).values()]
    found = next((failure for failure in raised if isinstance(failure, Exception)), None)
    return found or WorkerError(f"the workers were lost, and lost again after {_RESTARTS} restarts: {error}")
