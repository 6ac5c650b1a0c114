"""Which healings may be divided, among workers or into parts of a batch, and where else their losses go."""

import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from parents import child_of, random_ids, random_parent
from test_heal import CHILD, SHORT

from blocklib.kinds import parent_architecture
from blocklib.parent import child_config
from nas.cluster.gang import Gang
from nas.cluster.tasks import Cluster
from nas.errors import JobError, ResourceError
from nas.job.config import parse
from nas.job.request import Request
from nas.stages.feasible import check_sizes
from nas.stages.heal import heal, loss_curve
from nas.stages.heal_settings import HealingRun
from nas.stages.heal_workers import check_healing

SMALLEST = {"parent": "embedded", "data": {"train": "stdlib"}, "budget": {"latency": "60%"}}
ROUNDED = {"space": {"precision": ["q8_0"]}, "export": {"format": "gguf"}, "scenario": {"engine": "llama_cpp"}}


def request(**sections: Any) -> Request:
    return parse(yaml.safe_dump(SMALLEST | sections), "job.yaml")


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"heal": {"workers": 3}}, "heal.workers: a batch of 8 sequences has no equal parts for 3 workers"),
        ({"heal": {"accumulate": 3}}, "heal.accumulate: a batch of 8 sequences has no equal parts"),
        ({"heal": {"workers": 2, "accumulate": 8}}, "give a heal.batch that is a multiple of 16"),
        (
            {
                "heal": {"workers": 4},
                "data": {"train": "stdlib", "calibration_tokens": 512, "distillation_tokens": 512},
            },
            "heal.workers: a batch of 2 sequences has no equal parts",
        ),
        ({"heal": {"workers": 2, "rounding": "through"}} | ROUNDED, "heal.workers: rounded weights are healed by one"),
        ({"heal": {"workers": 0}}, "heal.workers"),
        ({"heal": {"report_to": ["clearml"]}}, "heal.report_to"),
    ],
)
def test_a_healing_that_cannot_be_divided_is_refused_by_its_key(sections: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError) as caught:
        request(**sections)
    assert told in str(caught.value)


@pytest.mark.parametrize("heal", [{"workers": 2}, {"accumulate": 2}, {}])
def test_experts_are_trained_on_whole_batches(heal: dict[str, int]) -> None:
    parent = random_parent()
    config = child_config(parent.config, parent_architecture(parent.shape), parent.shape)
    data = {"train": "stdlib", "sequence_length": 16, "calibration_tokens": 128, "distillation_tokens": 128}
    sizes = {"data": data, "space": {"ffn": ["moe4x12k2"]}, "scenario": {"prompt_tokens": 8, "generated_tokens": 1}}
    asked = request(**sizes, heal=heal)
    if not heal:
        check_sizes(asked, parent.shape, config)
        return
    with pytest.raises(JobError, match=rf"^heal\.{next(iter(heal))}: moe4x12k2 is trained on whole batches; give 1"):
        check_sizes(asked, parent.shape, config)


def test_a_program_that_is_not_installed_is_refused_by_name() -> None:
    with Cluster() as cluster:  # It is not started: one worker needs none.
        check_healing(request(heal={"report_to": ["tensorboard"]}), cluster)  # Ray brings it.
        with pytest.raises(JobError, match=r"^heal\.report_to: mlflow is not installed here; install it, or leave it"):
            check_healing(request(heal={"report_to": ["tensorboard", "mlflow"]}), cluster)


def healed(folder: Path, run: HealingRun) -> tuple[Sequence[float], dict[str, torch.Tensor]]:
    """The losses and the weights."""
    parent = random_parent()
    child, ids = deepcopy(child_of(parent, CHILD)), random_ids(parent, sequences=16)
    list(heal(parent.model, child, ids, SHORT, folder, run))
    return [loss for _, loss in loss_curve(folder, ids, SHORT)], child.state_dict()


def test_parts_of_a_batch_add_up_to_it(tmp_path: Path) -> None:
    whole, parts = healed(tmp_path / "whole", HealingRun()), healed(tmp_path / "parts", HealingRun(accumulate=4))
    assert parts[0] == pytest.approx(whole[0], abs=1e-5)
    for name, tensor in whole[1].items():
        torch.testing.assert_close(parts[1][name], tensor, rtol=0, atol=1e-4, msg=name)


def test_losses_go_to_tensorboard_too(tmp_path: Path) -> None:
    healed(tmp_path / "healing", HealingRun(report_to=("tensorboard",), reports=tmp_path / "losses"))
    assert [file.name for file in (tmp_path / "losses").iterdir() if "tfevents" in file.name]
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


def test_each_worker_gets_as_many_cores_as_there_are_for_all() -> None:
    two = [{"CPU": 16.0}, {"CPU": 8.0}]
    assert [Gang.on(two, workers, on_gpus=False).cpus for workers in (1, 2, 3, 4)] == [16, 8, 8, 5]
    gpus = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0}]
    assert Gang.on(gpus, 4, on_gpus=True).cpus == 4
    with pytest.raises(ResourceError, match="need a GPU and a core each, and the nodes have that for 4"):
        Gang.on(gpus, 5, on_gpus=True)
