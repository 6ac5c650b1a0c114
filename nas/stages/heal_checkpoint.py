"""The checkpoints of an unfinished healing, which any number of processes can write and read.

A checkpoint is torch's distributed one: weights, moments and the learning rate's schedule, by name. Each process writes
its own slices and reads those that it needs, whatever the number that wrote them. transformers' Trainer writes its own
state beside it, and last.
"""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from blocklib.sharded import ranks

Value = TypeVar("Value")

_FOLDER = "state"
_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


def save_state(checkpoint: str, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> None:
    """Write what training changes: trained weights, moments, the place in the schedule."""
    state = {
        "model": get_model_state_dict(model, options=_TRAINED),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "schedule": schedule,
    }
    with _of_one_or_all():
        save(state, checkpoint_id=Path(checkpoint, _FOLDER))


def load_state(checkpoint: str, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> None:
    """Put the state of a checkpoint in the place of what there is."""
    load_weights(checkpoint, model)
    moments = get_optimizer_state_dict(model, optimizer)
    _load({"optimizer": moments, "schedule": schedule}, checkpoint)
    set_optimizer_state_dict(model, optimizer, moments)


def load_weights(checkpoint: str, model: nn.Module) -> None:
    """Put the trained weights of a checkpoint into a model whose trained parameters ask for gradients; the others stay
    as they are."""
    weights = get_model_state_dict(model, options=_TRAINED)
    _load({"model": weights}, checkpoint)
    set_model_state_dict(model, weights, options=_TRAINED)


def state_of(checkpoint: str | None) -> TrainerState:
    """How far the trainer was; a new one's where there is no checkpoint."""
    return TrainerState() if checkpoint is None else TrainerState.load_from_json(f"{checkpoint}/{TRAINER_STATE_NAME}")


def agreed_last(checkpoints: Path) -> str | None:
    """`last_whole`, found by the first process for all: it may remove folders."""
    is_first = ranks() == 1 or distributed.get_rank() == 0
    return agreed(last_whole(checkpoints) if is_first else None)


def agreed(value: Value) -> Value:
    """The first process's value, for all."""
    if ranks() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def last_whole(checkpoints: Path) -> str | None:
    """The newest complete checkpoint. Incomplete ones, left by a kill, are removed."""
    for folder in checkpoints.glob("checkpoint-*"):
        if not _is_whole(folder):
            shutil.rmtree(folder)
    return get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None


def _is_whole(checkpoint: Path) -> bool:
    """The trainer writes its state last, and removes older checkpoints only after that."""
    if not (checkpoint / _FOLDER).is_dir():
        return False
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


def _load(state: dict[str, Any], checkpoint: str) -> None:
    with _of_one_or_all():
        load(state, checkpoint_id=Path(checkpoint, _FOLDER))


@contextmanager
def _of_one_or_all() -> Iterator[None]:
    """torch warns where there is no process group, and one process is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield
