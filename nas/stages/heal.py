"""Healing: global knowledge distillation (GKD) of an assembled child from its parent.

The loss is KL(parent || child) on the logits plus the cosine distance of hidden states after every block (Puzzle, arXiv
2411.19146, section 5), plus the regularisers of sparse FFNs. transformers' Trainer trains it in float32, on one device
or divided among the processes of a group, writes checkpoints and resumes. Embeddings and head do not change: they are
the parent's, and often one tensor. Only the child's weights change: changes of its settings by the trainer are undone.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from blocklib.distil import Progress
from blocklib.lora import adapter_of, add_adapters, merge_adapters
from blocklib.model import PuzzleNasForCausalLM
from blocklib.products import gradients_of, products_of
from blocklib.sharded import ranks, shard
from nas.files.permissions import open_as_usual
from nas.stages.heal_checkpoint import agreed, agreed_last, last_whole, load_weights, state_of
from nas.stages.heal_settings import Healing, HealingRun
from nas.stages.heal_trainer import HealingTrainer

_TENSORBOARD = "TENSORBOARD_LOGGING_DIR"


def heal(
    parent: PuzzleNasForCausalLM,
    child: PuzzleNasForCausalLM,
    ids_BT: Tensor,
    settings: Healing,
    checkpoints: Path,
    run: HealingRun = HealingRun(),  # noqa: B008  (frozen)
) -> Iterator[Progress]:
    """Train `child` in place; progress as it goes. A killed run resumes from its last checkpoint.

    `ids_BT` is [sequences, tokens], passed over as often as `settings.tokens` asks. The child's parameters must be its
    own, not shared with the parent; nothing else of it is changed when this ends. Both multiply as they do elsewhere
    (`blocklib/products.py`). Raises NotFiniteError where the loss is not finite.

    Every process of a torch process group calls this with the same values. Both models are then divided among them
    (`blocklib/sharded.py`), and stay so; the child may be in the types that its parts are stored in. Each process takes
    an equal share of every batch, so that the result is that of one process, up to rounding. Whatever number of
    processes resumes finds the same checkpoints, in a folder that all of them see.
    """
    with _settings_kept(child), _recomputed(child, run.recompute), gradients_of(products_of(child)):
        yield from _healing(parent, child, ids_BT, settings, checkpoints, run)
    if ranks() == 1:
        _freeze(child, settings.lora_rank)


def load_healed(child: PuzzleNasForCausalLM, settings: Healing, checkpoints: Path) -> None:
    """Make `child`, as it is before healing, what a healing that has ended made of it, its checkpoints still there: by
    whatever number of processes. The child's parameters must be its own."""
    last = last_whole(checkpoints)
    assert last is not None, f"no checkpoint is whole in {checkpoints}"
    _thaw(child, settings.lora_rank)
    load_weights(last, child)
    _freeze(child, settings.lora_rank)


def _freeze(child: PuzzleNasForCausalLM, lora_rank: int | None) -> None:
    """The opposite of `_thaw`; what adapters have learnt stays."""
    if lora_rank is not None:
        merge_adapters(child.model.layers)
    child.requires_grad_(False)
    child.eval()  # type: ignore[no-untyped-call]


@contextmanager
def _settings_kept(model: PuzzleNasForCausalLM) -> Iterator[None]:
    """The model's configurations are restored at the end, because the trainer turns off the KV cache of its model
    permanently."""
    kept = [(settings, deepcopy(vars(settings))) for settings in (model.config, model.generation_config)]
    try:
        yield
    finally:
        for settings, values in kept:
            vars(settings).clear()
            vars(settings).update(values)


@contextmanager
def _recomputed(model: PuzzleNasForCausalLM, recompute: bool) -> Iterator[None]:
    """A layer with a regulariser is left out: the loss reads that after the forward pass, with its gradient."""
    layers: list[Any] = list(model.model.layers) if recompute else []
    for layer in layers:
        # As transformers' own switch sets them, for all layers.
        layer.gradient_checkpointing = not any(hasattr(module, "regulariser") for module in layer.modules())
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = False


def _healing(
    parent: PuzzleNasForCausalLM,
    child: PuzzleNasForCausalLM,
    ids_BT: Tensor,
    settings: Healing,
    checkpoints: Path,
    run: HealingRun,
) -> Iterator[Progress]:
    batch = min(settings.batch, len(ids_BT))
    steps = max(1, settings.tokens // (batch * ids_BT.shape[1]))
    events: Queue[Progress | BaseException | None] = Queue()
    _thaw(child, settings.lora_rank)
    if ranks() > 1:
        shard(parent, parent.device)
        shard(child, parent.device, torch.float32)
    reports = _StepReports(events, batch * ids_BT.shape[1])
    with _reports_in(run.reports):
        trainer = HealingTrainer(
            model=child,
            args=_arguments(settings, run, batch, steps, checkpoints, use_cpu=parent.device.type == "cpu"),
            train_dataset=_Sequences(ids_BT),
            callbacks=[reports, _TimedCheckpoints(run.checkpoint_s)],
        )
    trainer.remove_callback(PrinterCallback)  # This callback prints the loss on standard output.
    trainer.distil_from(parent, settings.hidden_weight, run.accumulate)
    # The trainer reports through callbacks and our caller needs an iterator, so the trainer runs in a thread.
    worker = threading.Thread(target=_train, args=(trainer, checkpoints, torch.get_num_threads(), events), daemon=True)
    worker.start()
    try:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        reports.wanted = False
        if ranks() == 1:  # The step of one of several may wait for the others.
            worker.join()


@contextmanager
def _reports_in(folder: Path | None) -> Iterator[None]:
    """TensorBoard's folder is a variable of the environment, read where the trainer is made; checkpoints, beside which
    the trainer would write, are removed at the end."""
    before = os.environ.get(_TENSORBOARD)
    if folder is not None and before is None:
        os.environ[_TENSORBOARD] = str(folder)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_TENSORBOARD, None)


def loss_curve(checkpoints: Path, ids_BT: Tensor, settings: Healing) -> tuple[tuple[float, float], ...]:
    """The points of a healing that has ended, its checkpoints still there: tokens, and the mean loss since the point
    before."""
    state = state_of(last_whole(checkpoints))
    step_tokens = min(settings.batch, len(ids_BT)) * ids_BT.shape[1]
    noted = [(float(entry["step"]), float(entry["loss"])) for entry in state.log_history if "loss" in entry]
    return tuple((step * step_tokens, loss) for step, loss in noted)


def _arguments(
    settings: Healing, run: HealingRun, batch: int, steps: int, checkpoints: Path, use_cpu: bool
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=batch,
        accelerator_config={"split_batches": True},  # That is the batch of all processes together.
        dataloader_drop_last=True,  # Every step has the same number of tokens.
        learning_rate=settings.learning_rate,
        warmup_steps=int(settings.warmup * steps),
        lr_scheduler_type="cosine",
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        save_steps=steps,  # The end. `_TimedCheckpoints` says when else.
        save_total_limit=1,
        logging_steps=max(1, steps // 25),
        report_to=list(run.report_to),
        run_name=checkpoints.name,
        disable_tqdm=True,
        remove_unused_columns=False,
        # A batch of token ids is small, and ids may be on the model's device already.
        dataloader_pin_memory=False,
        seed=0,
        use_cpu=use_cpu,
    )


def _thaw(child: PuzzleNasForCausalLM, lora_rank: int | None) -> None:
    """Train all weights except the embeddings, the head and those that a kind freezes; or adapters of the layers'
    matrices."""
    child.requires_grad_(False)
    if lora_rank is None:
        child.model.layers.requires_grad_(True)
        child.model.norm.requires_grad_(True)
    else:
        add_adapters(child.model.layers, lora_rank)
    for module in child.modules():
        for name in getattr(module, "frozen_in_healing", ()):
            held = [module.get_parameter(name)] if lora_rank is None else adapter_of(module, name)
            for parameter in held:
                parameter.requires_grad_(False)


def _train(
    trainer: HealingTrainer, checkpoints: Path, threads: int, events: "Queue[Progress | BaseException | None]"
) -> None:
    try:
        # How many threads torch computes with is a setting of each thread, and a new one starts from the environment's.
        torch.set_num_threads(threads)
        if trainer.args.device.type == "cuda":
            torch.cuda.set_device(trainer.args.device)  # So is the GPU.
        last = agreed_last(checkpoints)
        if last is not None and state_of(last).global_step >= trainer.args.max_steps:
            # It was done. Resumed in the middle of a pass over the text, the trainer would add a step.
            load_weights(last, trainer.model)  # type: ignore[arg-type]
        else:
            trainer.train(resume_from_checkpoint=last)
        events.put(None)
    except BaseException as error:
        events.put(error)


class _Sequences(Dataset[dict[str, Tensor]]):
    def __init__(self, ids_BT: Tensor):
        self._ids_BT = ids_BT

    def __len__(self) -> int:
        return len(self._ids_BT)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._ids_BT[index].long()}


class _TimedCheckpoints(TrainerCallback):
    """Has the trainer write a checkpoint after so many seconds, as the first process counts them."""

    def __init__(self, every_s: float):
        self._every_s = every_s
        self._due = time.monotonic() + every_s

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if agreed(time.monotonic() >= self._due):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._due = time.monotonic() + self._every_s


class _StepReports(TrainerCallback):
    """Turns the trainer's callbacks into events, and stops the trainer after a step where nobody reads them."""

    def __init__(self, events: "Queue[Progress | BaseException | None]", tokens_per_step: int):
        self.wanted = True
        self._events = events
        self._tokens_per_step = tokens_per_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        done, total = state.global_step, state.max_steps
        self._events.put(Progress(done * self._tokens_per_step, total * self._tokens_per_step))
        control.should_training_stop = control.should_training_stop or not self.wanted

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert args.output_dir is not None
        if state.is_world_process_zero:
            open_as_usual(Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"))
