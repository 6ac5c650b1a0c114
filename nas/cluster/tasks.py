"""Ray: run functions on workers, and get back what they return.

A local Ray is started when the first work comes and stopped at the end; an address, or a job submitted to a cluster,
uses the one there is. Workers return values; whoever called writes them down. A killed worker costs its task, which
Ray starts again.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from nas.cluster import addresses
from nas.cluster.gang import Gang
from nas.cluster.ray_folder import ray_folder
from nas.errors import NasError, RayStartError, ResourceError, WorkerError
from nas.terminal.progress import Heard
from nas.terminal.signals import SIGNALS
from nas.text.token_files import TokenFile

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Task = TypeVar("Task", bound="DataclassInstance")
Result = TypeVar("Result")

# Ray reads these when it is imported, which other libraries do as well: `uv run` does not make every worker build its
# environment anew, and a cluster that asks for a token is shown it.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray would answer SIGTERM with a stack and a sudden end, in workers and in the process that started it.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
# Ray would keep a worker for each core. One that waits holds PyTorch, 0.4 GB, which a stage of one task has use for.
os.environ.setdefault("RAY_num_workers_soft_limit", "0")
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "20000")
addresses.show_token()


class Report(Protocol):
    """How work reports its progress: `done` of a `total`, and in words what it is `doing`. A total of 0 changes only
    the words."""

    def __call__(self, done: float = 0, total: float = 0, doing: str = "") -> None: ...


STARTING = "starting workers"
"""The state of a stage before its first report: Ray starts, workers load PyTorch and then the parent."""

_LESS_MEMORY = (
    "if memory runs out, lower distill.batch or ray.layers_per_task (while options train), heal.batch (while the child "
    "heals), scenario.batch or its tokens (during timings); the same command resumes"
)


class Cluster:
    """Where work runs. A context manager; costs nothing until the first `run`.

    `address` as `addresses.cluster` takes it; raises what that does.
    """

    def __init__(self, address: str | None = None):
        self._address = addresses.cluster(address)
        self._started = False
        self._ours = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ours:
            import ray

            ray.shutdown()
        self._started = False

    @property
    def is_here(self) -> bool:
        """Whether it is a Ray of our own on this machine, not a cluster's."""
        return self._address.text == "local"

    def share(self, value: Any) -> Any:
        """A handle to `value`, held once per node; as a field of a task it arrives as the value."""
        import ray

        self._start()
        return ray.put(value)

    def places(self, cpus: float, gpus: float) -> int:
        """How many tasks of this size run at once when the cluster is idle; at least 1."""
        import ray

        self._start()
        found = ray.cluster_resources()
        at_once = [found.get(name, 0) // asked for name, asked in (("CPU", cpus), ("GPU", gpus)) if asked]
        return max(1, int(min(at_once, default=1)))

    def run(
        self,
        work: Callable[[Task, Report], Result],
        tasks: Sequence[Task],
        *,
        cpus: float = 1,
        gpus: float = 0,
        whole_node: bool = False,
        progress: Heard | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Run `work(task, report)` for each task; (index, result) as they finish, in any order. A task is a dataclass;
        a field that is a file of tokens arrives as its ids, read where the task runs.

        `progress(index, done, total, doing)` hears what tasks report. `whole_node`: with all CPUs of a node, so that
        nothing else of ours runs beside it. Raises what a task raised, and ResourceError where no node has the
        resources.
        """
        import ray

        self._start()
        cpus = self._all_cpus(gpus) if whole_node else cpus
        self._check(cpus, gpus)
        try:
            remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3)(_on_worker)
        except ValueError as error:  # a share smaller than Ray counts
            asked = f"ray.cpus_per_task {cpus!r} or ray.gpus_per_task {gpus!r}"
            raise ResourceError(f"Ray refuses {asked}: {error}") from error
        yield from self._run(remote, max(1, int(cpus)), work, tasks, progress)

    def run_here(self, work: Callable[[Task, Report], Result], task: Task, progress: Heard | None = None) -> Result:
        """Run one task in a process of its own beside this one, where it sees the same folders: for what needs memory
        that this process should not keep. Raises as `run` does."""
        import ray

        from cost_models.hardware import usable_cores  # It loads PyTorch.

        self._start()
        remote = ray.remote(num_cpus=0, max_retries=3, scheduling_strategy=self._here())(_on_worker)
        ((_, found),) = self._run(remote, usable_cores(), work, [task], progress)
        return found

    def gang(self, workers: int, on_gpus: bool) -> Gang:
        """So many workers at once, each with as many cores as there are for it, and a GPU. Raises ResourceError where
        the cluster cannot hold them."""
        import ray

        self._start()
        return Gang.on([node["Resources"] for node in ray.nodes() if node["Alive"]], workers, on_gpus)

    def run_together(
        self,
        work: Callable[[Task, Report], Result],
        task: Task,
        gang: Gang,
        folder: Path,
        *,
        ends: type[NasError],
        progress: Heard | None = None,
    ) -> Result:
        """Run `work(task, report)` on all workers of a gang as one torch process group; what the first one returned.

        `folder` is one that all nodes see, for Ray Train's notes. The first worker alone is heard. A worker that is
        lost, or raises, starts all of them again, but for errors of the class `ends`, which all raise together. Raises
        what the first that failed raised.
        """
        import ray

        self._start()
        conduct = gang.conductor(folder, ends, _on_rank)
        remote = ray.remote(num_cpus=0, max_retries=3, scheduling_strategy=self._here())(conduct)
        ((_, found),) = self._run(remote, gang.cpus, work, [task], progress)
        return found

    def _here(self) -> Any:
        """On the node of this process."""
        import ray

        return _at(ray.get_runtime_context().get_node_id())

    def _run(
        self,
        remote: Any,
        threads: int,
        work: Callable[[Task, Report], Result],
        tasks: Sequence[Task],
        progress: Heard | None,
    ) -> Iterator[tuple[int, Result]]:
        import ray

        # Beside this process, so that no other node takes it along when it dies.
        board: Any = ray.remote(num_cpus=0, scheduling_strategy=self._here())(_Board)
        board = board.remote()
        running = {remote.remote(work, threads, board, i, *_taken_apart(task)): i for i, task in enumerate(tasks)}
        seen: dict[int, _State] = {}
        try:
            while running:
                finished, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
                if progress is not None:
                    states: dict[int, _State] = ray.get(board.read.remote())
                    for index, state in states.items():
                        if seen.get(index) != state:
                            seen[index] = state
                            progress(index, *state)
                for reference in finished:
                    yield running.pop(reference), self._value(reference)
        finally:
            # Unfinished work ends with our connection. Ray may crash where it is told to cancel a task that is
            # just about to end (ray-project/ray#54798), so it is told only where the connection stays.
            for reference in () if self._ours else running:
                ray.cancel(reference, force=True)
            ray.kill(board)

    def on_each_node(
        self, work: Callable[[Any], Result], value: Any, patience_s: float
    ) -> list[tuple[str, Result | None]]:
        """Run `work(value)` once on every node that has CPUs: the node, in words, and what it returned; None where it
        does not answer in time. Nodes that are lost meanwhile are left out."""
        import ray

        self._start()
        running = {}
        for node in ray.nodes():
            if node["Alive"] and node["Resources"].get("CPU", 0) > 0:
                worker = ray.remote(num_cpus=0, max_retries=3, scheduling_strategy=_at(node["NodeID"]))
                running[worker(work).remote(value)] = f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
        finished, _ = ray.wait(list(running), num_returns=len(running), timeout=patience_s)
        found: list[tuple[str, Result | None]] = []
        for reference, name in running.items():
            try:
                found.append((name, self._value(reference) if reference in finished else None))
            except WorkerError:  # The node died, and Ray may notice that late.
                continue
        return found

    def _value(self, reference: Any) -> Any:
        import ray

        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            # The worker's own exception, without Ray's wrapping; the remote traceback stays as its cause.
            cause = error.cause
            if _is_out_of_memory(cause):
                raise WorkerError(f"a worker ran out of memory: {cause}\n{_LESS_MEMORY}") from error
            raise cause from error
        except ray.exceptions.RayError as error:
            raise WorkerError(f"a worker was lost, and lost again after a restart: {error}\n{_LESS_MEMORY}") from error

    def _start(self) -> None:
        if self._started:
            return
        addresses.ask_for_cluster(self._address)
        import ray

        if not ray.is_initialized():
            local: Mapping[str, Any] = {"include_dashboard": False, "_temp_dir": ray_folder()} if self.is_here else {}
            with _explained(self._address), SIGNALS.kept(), addresses.set_aside("RAY_ADDRESS"):
                ray.init(address=self._address.text, log_to_driver=False, logging_level=logging.ERROR, **local)
            self._ours = True
        self._started = True

    def _all_cpus(self, gpus: float) -> float:
        """The CPUs of the largest node that has as many GPUs."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return max((node.get("CPU", 0.0) for node in nodes if node.get("GPU", 0) >= gpus), default=1.0)

    def _check(self, cpus: float, gpus: float) -> None:
        import ray

        if gpus > 1 and gpus != int(gpus):
            raise ResourceError(
                f"a task asks for {gpus:g} GPUs, but Ray gives a task a part of one GPU, or whole GPUs; set "
                "ray.gpus_per_task to a whole number, or to less than 1"
            )
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            have = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise ResourceError(
                f"a task asks for {cpus:g} CPUs and {gpus:g} GPUs, and no node has them (nodes: {have}); "
                "lower ray.cpus_per_task or ray.gpus_per_task"
            )


def _at(node_id: str) -> Any:
    """On that node alone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


@contextmanager
def _explained(address: addresses.Address) -> Iterator[None]:
    """Whatever Ray says while it starts, as one line: it raises exceptions of every class."""
    try:
        yield
    except Exception as error:
        if address.text == "local":
            raise RayStartError(f"Ray did not start on this machine: {error}") from error
        raise RayStartError(f"the Ray at {address} does not accept this process: {error}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: by the error of Python or numpy, of torch on a device, or of torch on the CPU."""
    is_torchs = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or is_torchs


def _taken_apart(task: "DataclassInstance") -> tuple[Any, ...]:
    """A task's class and the values of its fields: Ray puts a value in the place of a handle that is an argument, not
    of one inside an argument."""
    return type(task), *(getattr(task, each.name) for each in fields(task))


_State = tuple[float, float, str]
"""As a task reports it."""


class _Board:
    """Where tasks write how far they are."""

    def __init__(self) -> None:
        self._states: dict[int, _State] = {}

    def write(self, index: int, done: float, total: float, doing: str) -> None:
        if total == 0:
            done, total, _ = self._states.get(index, (0, 0, ""))
        self._states[index] = done, total, doing

    def read(self) -> dict[int, _State]:
        return dict(self._states)


def _on_worker(
    work: Callable[..., Any], threads: int, board: Any, index: int, kind: Callable[..., Any], *values: Any
) -> Any:
    def report(done: float = 0, total: float = 0, doing: str = "") -> None:
        if board is not None:
            board.write.remote(index, done, total, doing)

    import torch

    from blocklib.allocator import give_back

    # Ray sets one thread for a worker's first task and leaves it there for the next.
    torch.set_num_threads(threads)
    try:
        return work(kind(*(value.opened() if isinstance(value, TokenFile) else value for value in values)), report)
    finally:
        give_back()  # Ray keeps the process for a task to come, of this stage or another.


def _on_rank(
    work: Callable[..., Any], threads: int, board: Any, index: int, kind: Callable[..., Any], *values: Any
) -> Any:
    """One worker of a gang. The first is heard."""
    from torch import distributed

    return _on_worker(work, threads, board if distributed.get_rank() == 0 else None, index, kind, *values)
