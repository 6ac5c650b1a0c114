"""Healing: global knowledge distillation (GKD) of an assembled child from its parent.

The loss is KL(parent || child) on the logits plus the cosine distance of hidden states after every block (Puzzle, arXiv
2411.19146, section 5), plus the regularisers of sparse FFNs. transformers' Trainer trains it in float32 on one device,
writes checkpoints and resumes. Embeddings and head do not change: they are the parent's, and often one tensor. Only the
child's weights change: changes of its settings by the trainer are undone.
"""

import json
import shutil
import threading
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
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from blocklib.block import Architecture
from blocklib.distil import Progress, regulariser
from blocklib.errors import NotFiniteError
from blocklib.lora import adapter_of, add_adapters, merge_adapters
from blocklib.model import PuzzleNasForCausalLM
from blocklib.products import gradients_of, products_of
from nas.files.permissions import open_as_usual
from nas.scoring.logit_kl import logit_kl
from nas.stages.heal_settings import Healing


def heal(
    parent: PuzzleNasForCausalLM,
    child: PuzzleNasForCausalLM,
    ids_BT: Tensor,
    settings: Healing,
    checkpoints: Path,
    recompute: bool = False,
) -> Iterator[Progress]:
    """Train `child` in place; progress as it goes. A killed run resumes from its last checkpoint.

    `recompute`: what layers keep for the backward pass is computed again there, a layer at a time (gradient
    checkpointing, arXiv 1604.06174). It takes a forward pass more, and the result is the same to the bit.

    `ids_BT` is [sequences, tokens], passed over as often as `settings.tokens` asks. The child's parameters must be its
    own, not shared with the parent; nothing else of it is changed when this ends. Both multiply as they do elsewhere
    (`blocklib/products.py`). Raises NotFiniteError where the loss is.
    """
    with _settings_kept(child), _recomputed(child, recompute), gradients_of(products_of(child)):
        yield from _healing(parent, child, ids_BT, settings, checkpoints)
    if settings.lora_rank is not None:
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
) -> Iterator[Progress]:
    batch = min(settings.batch, len(ids_BT))
    steps = max(1, settings.tokens // (batch * ids_BT.shape[1]))
    events: Queue[Progress | BaseException | None] = Queue()
    _thaw(child, settings.lora_rank)
    trainer = _HealingTrainer(
        model=child,
        args=_arguments(settings, batch, steps, checkpoints, use_cpu=parent.device.type == "cpu"),
        train_dataset=_Sequences(ids_BT),
        callbacks=[_StepReports(events, batch * ids_BT.shape[1])],
    )
    trainer.remove_callback(PrinterCallback)  # This callback prints the loss on standard output.
    trainer.distil_from(parent, settings.hidden_weight)
    # The trainer reports through callbacks and our caller needs an iterator, so the trainer runs in a thread.
    worker = threading.Thread(target=_train, args=(trainer, checkpoints, torch.get_num_threads(), events), daemon=True)
    worker.start()
    while (event := events.get()) is not None:
        if isinstance(event, BaseException):
            raise event
        yield event


def loss_curve(checkpoints: Path, ids_BT: Tensor, settings: Healing) -> tuple[tuple[float, float], ...]:
    """The points of a healing that has ended, its checkpoints still there: tokens, and the mean loss since the point
    before."""
    state = _state_of(_last_whole(checkpoints))
    step_tokens = min(settings.batch, len(ids_BT)) * ids_BT.shape[1]
    noted = [(float(entry["step"]), float(entry["loss"])) for entry in state.log_history if "loss" in entry]
    return tuple((step * step_tokens, loss) for step, loss in noted)


def _arguments(settings: Healing, batch: int, steps: int, checkpoints: Path, use_cpu: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=batch,
        dataloader_drop_last=True,  # Every step has the same number of tokens.
        learning_rate=settings.learning_rate,
        warmup_steps=int(settings.warmup * steps),
        lr_scheduler_type="cosine",
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        save_steps=max(1, steps // 10),
        save_total_limit=1,
        logging_steps=max(1, steps // 25),
        report_to=[],
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


def _train(trainer: Trainer, checkpoints: Path, threads: int, events: "Queue[Progress | BaseException | None]") -> None:
    try:
        # How many threads torch computes with is a setting of each thread, and a new one starts from the environment's.
        torch.set_num_threads(threads)
        last = _last_whole(checkpoints)
        if last is not None and _state_of(last).global_step >= trainer.args.max_steps:
            # It was done. Resumed in the middle of a pass over the text, the trainer would add a step.
            trainer._load_from_checkpoint(last)
        else:
            trainer.train(resume_from_checkpoint=last)
        events.put(None)
    except BaseException as error:
        events.put(error)


def _state_of(checkpoint: str | None) -> TrainerState:
    """How far the trainer was; a new one's where there is no checkpoint."""
    return TrainerState() if checkpoint is None else TrainerState.load_from_json(f"{checkpoint}/{TRAINER_STATE_NAME}")


def _last_whole(checkpoints: Path) -> str | None:
    """The newest complete checkpoint. Incomplete ones, left by a kill, are removed."""
    for folder in checkpoints.glob("checkpoint-*"):
        if not _is_whole(folder):
            shutil.rmtree(folder)
    return get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None


def _is_whole(checkpoint: Path) -> bool:
    """The trainer writes its state last, and removes older checkpoints only after that."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


class _Sequences(Dataset[dict[str, Tensor]]):
    def __init__(self, ids_BT: Tensor):
        self._ids_BT = ids_BT

    def __len__(self) -> int:
        return len(self._ids_BT)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._ids_BT[index].long()}


class _StepReports(TrainerCallback):
    """Turns the trainer's callbacks into events."""

    def __init__(self, events: "Queue[Progress | BaseException | None]", tokens_per_step: int):
        self._events = events
        self._tokens_per_step = tokens_per_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        done, total = state.global_step, state.max_steps
        self._events.put(Progress(done * self._tokens_per_step, total * self._tokens_per_step))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert args.output_dir is not None
        open_as_usual(Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"))


class _HealingTrainer(Trainer):
    """A Trainer whose loss is the distance to a parent."""

    def distil_from(self, parent: PuzzleNasForCausalLM, hidden_weight: float) -> None:
        self._parent = parent
        self._hidden_weight = hidden_weight
        config: Any = self.model.config  # type: ignore[union-attr]
        architecture = Architecture.parse(config.architecture)
        self._ends = [layer + block.layers for layer, block in architecture.placed()]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        ids_BT, asked = inputs["input_ids"], {"output_hidden_states": self._hidden_weight > 0, "use_cache": False}
        child: PuzzleNasForCausalLM = self.accelerator.unwrap_model(model)
        with torch.no_grad():
            target = self._parent.model(ids_BT, **asked)
        # Only the decoder, because a forward of the whole model would compute all logits.
        try:
            output = child.model(ids_BT, **asked)
        except NotFiniteError as error:  # A weight that is to be rounded
            raise NotFiniteError(
                f"healing: {error}, at step {self.state.global_step}; lower heal.learning_rate"
            ) from error
        loss = logit_kl(output.last_hidden_state, target.last_hidden_state, child.lm_head, self._parent.lm_head)
        if self._hidden_weight > 0:
            # hidden_states[0] is the embedding; the last one of both is taken after the final norm.
            distances = [
                1 - torch.cosine_similarity(hidden.float(), target.hidden_states[end].float(), dim=-1).mean()
                for hidden, end in zip(output.hidden_states[1:], self._ends, strict=True)
            ]
            loss = loss + self._hidden_weight * torch.stack(distances).mean()
        if model.training:
            loss = loss + regulariser(model)
        if not torch.isfinite(loss):
            raise NotFiniteError(
                f"healing: the loss is {loss.item()} at step {self.state.global_step}; lower heal.learning_rate"
            )
        return (loss, output) if return_outputs else loss
