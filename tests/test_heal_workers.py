"""Healing by several workers: the result of one, whoever is killed, and whatever number of workers goes on."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from parents import first_weights_of, random_ids, random_parent
from searches import job, nas, rows, started, stop_group
from test_heal import CHILD, SHORT

from blocklib.assemble import assemble_stored
from blocklib.block import Architecture
from blocklib.errors import NotFiniteError
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import in_type
from nas.cluster.tasks import Cluster, Report
from nas.errors import ResourceError
from nas.stages.heal import heal, load_healed, loss_curve
from nas.stages.heal_settings import Healing, HealingRun

pytestmark = pytest.mark.slow

Curve = tuple[tuple[float, float], ...]
STEP = 48
"""Tokens of a step of `SHORT`."""
SIX = replace(SHORT, tokens=6 * STEP)
WAYS: dict[str, tuple[Healing, HealingRun]] = {
    "plain": (SHORT, HealingRun(checkpoint_s=0.0)),
    "recompute": (SIX, HealingRun(recompute=True)),
    "accumulate": (SIX, HealingRun(accumulate=2)),
    "adapters": (replace(SIX, lora_rank=2), HealingRun()),
    "logits alone": (replace(SIX, hidden_weight=0.0), HealingRun()),
    "tied": (SIX, HealingRun()),
    "stored in bfloat16": (SIX, HealingRun()),
}


@dataclass(frozen=True)
class _Task:
    """`killed` "": nobody is. "between": the second worker, after a step; "saving": the second worker, while a
    checkpoint is written. Once; a file says that it has been."""

    folder: Path
    ways: tuple[str, ...] = ("plain",)
    killed: str = ""
    learning_rate: float = SHORT.learning_rate


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Workers find the functions below where this file is.
    with pytest.MonkeyPatch.context() as here, Cluster() as cluster:
        here.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield cluster


def models(way: str) -> tuple[PuzzleNasForCausalLM, PuzzleNasForCausalLM, torch.Tensor]:
    """A parent, a child as its parts are stored, and text."""
    stored = torch.bfloat16 if way == "stored in bfloat16" else torch.float32
    parent = replace(random_parent("qwen2" if way == "tied" else "llama", dtype=stored), dtype=torch.float32)
    architecture = Architecture.parse(CHILD)
    first = first_weights_of(parent, architecture)
    child = assemble_stored(parent, architecture, lambda choice: first.get(choice, {}))
    return parent.model, child, random_ids(parent, sequences=16)


def _heal(task: _Task, report: Report) -> int:
    """On every worker; how many steps it saw."""
    if task.killed == "saving":
        threading.Thread(target=_die_while_saving, args=(task.folder / "plain",), daemon=True).start()
    steps = 0
    for way in task.ways:
        settings, run = WAYS[way]
        parent, child, ids = models(way)
        settings = replace(settings, learning_rate=task.learning_rate)
        for event in heal(parent, child, ids, settings, task.folder / way, run):
            steps += 1
            report(event.done_tokens, event.total_tokens)
            if task.killed == "between" and event.done_tokens == 13 * STEP:
                _die(task.folder / "plain")
    return steps


def _die_while_saving(checkpoints: Path) -> None:
    while not any(_is_begun(folder) for folder in checkpoints.glob("checkpoint-1?")):
        time.sleep(0.0005)
    _die(checkpoints)


def _is_begun(checkpoint: Path) -> bool:
    return (checkpoint / "state").exists() and not (checkpoint / "trainer_state.json").exists()


def _die(folder: Path) -> None:
    if torch.distributed.get_rank() == 1 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def alone(folder: Path, way: str = "plain") -> tuple[Curve, dict[str, torch.Tensor]]:
    """The curve and the weights of one process."""
    settings, run = WAYS[way]
    parent, stored, ids = models(way)
    child = in_type(stored, torch.float32, copy=True)
    list(heal(parent, child, ids, settings, folder / way, run))
    return loss_curve(folder / way, ids, settings), child.state_dict()


def ended(folder: Path, way: str = "plain") -> tuple[Curve, dict[str, torch.Tensor]]:
    """The same of the last checkpoint in a folder."""
    settings, _ = WAYS[way]
    _, stored, ids = models(way)
    child = in_type(stored, torch.float32, copy=True)
    load_healed(child, settings, folder / way)
    return loss_curve(folder / way, ids, settings), child.state_dict()


def assert_same(found: tuple[Curve, dict[str, torch.Tensor]], expected: tuple[Curve, dict[str, torch.Tensor]]) -> None:
    assert [tokens for tokens, _ in found[0]] == [tokens for tokens, _ in expected[0]]
    assert [loss for _, loss in found[0]] == pytest.approx([loss for _, loss in expected[0]], abs=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, tensor in expected[1].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=0, atol=1e-4, msg=name)


def together(cluster: Cluster, task: _Task) -> int:
    gang = cluster.gang(2, on_gpus=False)
    return cluster.run_together(_heal, task, gang, task.folder / "gang", ends=NotFiniteError)


def test_two_workers_heal_as_one_does(cluster: Cluster, tmp_path: Path) -> None:
    assert together(cluster, _Task(tmp_path / "two", tuple(WAYS))) == 20 + 6 * (len(WAYS) - 1)
    for way in WAYS:
        assert_same(ended(tmp_path / "two", way), alone(tmp_path / "one", way))


@pytest.mark.parametrize("killed", ["between", "saving"])
def test_a_worker_that_is_killed_costs_what_was_done_since_the_last_checkpoint(
    killed: str, cluster: Cluster, tmp_path: Path
) -> None:
    left = together(cluster, _Task(tmp_path / "two", killed=killed))
    assert (tmp_path / "two/plain/died").exists()
    assert 1 <= left < 20, "it began anew"
    assert_same(ended(tmp_path / "two"), alone(tmp_path / "one"))


_KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
from pathlib import Path
from test_heal_workers import STEP, WAYS, heal, in_type, models
torch.set_num_threads({threads})
parent, child, ids = models("plain")
if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
else:
    child = in_type(child, torch.float32, copy=True)
for event in heal(parent, child, ids, WAYS["plain"][0], Path(sys.argv[1], "plain"), WAYS["plain"][1]):
    if event.done_tokens >= 13 * STEP:
        os.kill(os.getpid(), 9)
"""


def killed(folder: Path, workers: int) -> None:
    """Processes of one group that end at the thirteenth of twenty steps, all at once."""
    script = _KILLED.format(tests=str(Path(__file__).parent), threads=torch.get_num_threads())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if workers > 1 else {} for rank in range(workers)]
    command = [sys.executable, "-c", script, str(folder)]
    running = [subprocess.Popen(command, env=os.environ | rank, stderr=subprocess.PIPE, text=True) for rank in ranks]
    ends = [process.communicate(timeout=600)[1] for process in running]
    assert -signal.SIGKILL in [process.returncode for process in running], ends


def test_another_number_of_workers_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    whole = alone(tmp_path / "whole")
    killed(tmp_path / "fewer", workers=2)
    assert 1 <= len(loss_curve(tmp_path / "fewer/plain", models("plain")[2], SHORT)) < 20
    assert_same(alone(tmp_path / "fewer"), whole)
    killed(tmp_path / "more", workers=1)
    assert 1 <= together(cluster, _Task(tmp_path / "more")) < 20, "it began anew"
    assert_same(ended(tmp_path / "more"), whole)


def test_a_loss_that_is_not_finite_ends_all_workers_at_once(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"healing: the loss is nan at step \d+; lower heal\.learning_rate"):
        together(cluster, _Task(tmp_path, learning_rate=1e30))


def test_more_workers_than_cores_are_refused_at_once(cluster: Cluster) -> None:
    with pytest.raises(ResourceError, match=r"^heal\.workers: 1000 workers need a core each, and the nodes have that"):
        cluster.gang(1000, on_gpus=False)


def test_a_search_heals_with_two_workers_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    """The curve of one worker, in the database and in the report."""
    found = {}
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        asked = job(folder, heal={"tokens": 16_384, "workers": workers, "checkpoint_every": "1 ms"})
        if workers == 2:
            running = started(folder, "search", asked)
            _wait_for_checkpoint(folder / "checkpoints", running)
            stop_group(running, signal.SIGKILL)
        ended = nas(folder, "search", asked)
        assert ended.returncode == 0, ended.stderr
        (trial,) = rows(folder, "trial")
        found[workers] = trial["child_key"], json.loads(trial["heal_curve"])
        (page,) = (folder / "reports").glob("*.html")
        assert "loss of healing against tokens" in page.read_text(encoding="utf-8")
        assert not list((folder / "checkpoints").glob("*/*"))
    assert found[1][0] == found[2][0], "the number of workers is no part of what a child is"
    (_, one), (_, two) = found.values()
    assert [tokens for tokens, _ in two] == [tokens for tokens, _ in one]
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-5)


def _wait_for_checkpoint(checkpoints: Path, running: "subprocess.Popen[str]") -> None:
    while not list(checkpoints.glob("*/checkpoint-*/trainer_state.json")):
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.05)


def test_a_search_of_more_workers_than_cores_ends_at_once(tmp_path: Path) -> None:
    ended = nas(tmp_path, "search", job(tmp_path, heal={"workers": 64, "batch": 64, "tokens": 4096}))
    assert ended.returncode == 1
    assert "error: heal.workers: 64 workers need a core each, and the nodes have that for" in ended.stderr
    assert not rows(tmp_path, "trial")
