"""The seam to Ray, on a real one: values, progress, errors as raised, lost workers, whole nodes, shared arrays."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from blocklib.errors import CheckpointError, NotFiniteError
from nas.cluster.tasks import Cluster, Report
from nas.errors import ResourceError, WorkerError


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Workers find the functions below where this file is.
    with pytest.MonkeyPatch.context() as here, Cluster() as cluster:
        here.setenv("PYTHONPATH", str(Path(__file__).parent))
        here.setenv("RAY_idle_worker_killing_time_threshold_ms", "2000")  # It is longer outside of tests.
        yield cluster


@dataclass(frozen=True)
class _Task:
    value: Any = None


def _square(task: _Task, report: Report) -> int:
    for step in range(1, 4):
        report(step, 3)
    return int(task.value * task.value)


def _refuse(task: _Task, report: Report) -> None:
    raise task.value


def _fill_memory(task: _Task, report: Report) -> None:
    import torch

    torch.empty(2**60, dtype=torch.uint8)


def _die_once(task: _Task, report: Report) -> int:
    """Killed as the kernel kills what takes too much memory; the second time it finds its own trace, and lives."""
    if not Path(task.value).exists():
        Path(task.value).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def _look_at(task: _Task, report: Report) -> tuple[bool, bool, int]:
    array = task.value
    return bool(array.flags.writeable), bool(array.flags.owndata), int(array.sum())


def _when(task: _Task, report: Report) -> tuple[float, float]:
    began = time.time()
    time.sleep(0.3)
    return began, time.time()


def _threads(task: _Task, report: Report) -> int:
    import torch

    return torch.get_num_threads()


def test_values_come_back_with_the_index_of_their_task(cluster: Cluster) -> None:
    assert dict(cluster.run(_square, [_Task(number) for number in range(6)])) == {n: n * n for n in range(6)}


def test_no_tasks_are_no_work(cluster: Cluster) -> None:
    assert list(cluster.run(_square, [])) == []


def test_progress_is_heard_to_the_end(cluster: Cluster) -> None:
    heard: dict[int, list[tuple[float, float]]] = {}
    found = cluster.run(
        _square,
        [_Task(2), _Task(3)],
        progress=lambda index, done, total, _: heard.setdefault(index, []).append((done, total)),
    )
    assert len(list(found)) == 2
    assert {index: states[-1] for index, states in heard.items()} == {0: (3, 3), 1: (3, 3)}
    assert all(states == sorted(states) for states in heard.values())


@pytest.mark.parametrize(
    "error",
    [
        NotFiniteError("L3.ffn=ffn256: the loss is nan"),
        CheckpointError("model.safetensors", "is cut", "copy it again"),
        WorkerError("no room"),
        ValueError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_one_the_task_raised(cluster: Cluster, error: Exception) -> None:
    """So that a bug in a worker ends in a traceback, and a mistake in a line."""
    with pytest.raises(type(error)) as caught:
        list(cluster.run(_refuse, [_Task(error)]))
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert "_refuse" in str(caught.value.__cause__), "the remote traceback"


def test_out_of_memory_says_what_takes_less(cluster: Cluster) -> None:
    """An exbibyte."""
    with pytest.raises(
        OSError, match=r"(?s)a worker ran out of memory: .*allocate.*\nif memory runs out, lower distill\.batch"
    ):
        list(cluster.run(_fill_memory, [_Task()]))


@pytest.mark.parametrize("asked", [{"cpus": 1000.0}, {"gpus": 64.0}])
def test_what_no_node_can_hold_is_refused_at_once(cluster: Cluster, asked: dict[str, float]) -> None:
    with pytest.raises(ResourceError, match=r"no node has them \(nodes: .* CPUs"):
        list(cluster.run(_square, [_Task(1)], **asked))


@pytest.mark.parametrize("asked", [{"gpus": 1.5}, {"cpus": 1e-5}])
def test_what_ray_cannot_count_is_refused_at_once(cluster: Cluster, asked: dict[str, float]) -> None:
    with pytest.raises(ResourceError, match=r"ray\.gpus_per_task"):
        list(cluster.run(_square, [_Task(1)], **asked))


def test_a_killed_worker_costs_its_task_only(cluster: Cluster, tmp_path: Path) -> None:
    marker = tmp_path / "was here"
    ((index, pid),) = cluster.run(_die_once, [_Task(str(marker))])
    assert (index, marker.exists()) == (0, True)
    assert pid != os.getpid()


def test_a_shared_array_is_read_in_place(cluster: Cluster) -> None:
    """Read-only, and no copy of its own: it lies in the node's memory once, whoever reads it."""
    array = np.arange(1_000_000, dtype=np.int32)
    handle = cluster.share(array)
    for _, (writeable, own, total) in cluster.run(_look_at, [_Task(handle), _Task(handle)]):
        assert (writeable, own, total) == (False, False, int(array.sum()))


def test_a_whole_node_is_for_one_task_at_a_time(cluster: Cluster) -> None:
    times = sorted(when for _, when in cluster.run(_when, [_Task(), _Task(), _Task()], whole_node=True))
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(times))


def test_a_worker_computes_with_the_cpus_it_was_given(cluster: Cluster) -> None:
    """A worker is used again, and keeps the threads of its last task unless told."""
    given = [next(iter(cluster.run(_threads, [_Task()], cpus=cpus)))[1] for cpus in (1, 2, 1)]
    assert given == [1, 2, 1]


def test_workers_that_wait_end_and_so_give_their_memory_back(cluster: Cluster) -> None:
    waiting = {pid for _, (pid, _) in cluster.run(_where, [_Task(), _Task(), _Task()])}
    end = time.monotonic() + 60
    while any(map(psutil.pid_exists, waiting)):
        assert time.monotonic() < end, "Ray keeps them"
        time.sleep(0.1)


def _where(task: _Task, report: Report) -> tuple[int, int]:
    return os.getpid(), os.getppid()


def test_work_beside_this_process_is_in_another(cluster: Cluster) -> None:
    process, parent = cluster.run_here(_where, _Task())
    assert os.getpid() not in (process, parent)
    heard: list[tuple[float, float]] = []
    assert cluster.run_here(_square, _Task(7), lambda index, done, total, doing: heard.append((done, total))) == 49
    assert heard[-1:] in ([], [(3, 3)])
    with pytest.raises(NotFiniteError, match="the loss is nan"):
        cluster.run_here(_refuse, _Task(NotFiniteError("the loss is nan")))
