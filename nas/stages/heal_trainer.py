"""The trainer of `heal.py`: transformers' Trainer, with the distance to a parent as its loss, and with checkpoints that
any number of processes can read."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer

from blocklib.block import Architecture
from blocklib.distil import regulariser
from blocklib.errors import NotFiniteError
from blocklib.model import PuzzleNasForCausalLM
from blocklib.moments import make_moments
from blocklib.sharded import ranks
from nas.scoring.logit_kl import logit_kl
from nas.stages.heal_checkpoint import load_state, save_state


class HealingTrainer(Trainer):
    """A Trainer whose loss is the distance to a parent."""

    def distil_from(self, parent: PuzzleNasForCausalLM, hidden_weight: float, parts: int) -> None:
        """Before training: whose hidden states count how much, and in how many parts a batch is taken."""
        self._parent = parent
        self._parts = parts
        self._hidden_weight = hidden_weight
        config: Any = self.model.config  # type: ignore[union-attr]
        architecture = Architecture.parse(config.architecture)
        self._ends = [layer + block.layers for layer, block in architecture.placed()]
        # A divided model owns its placement, and the sums of its gradients: accelerate is to leave both alone.
        self.is_distributed_loading_by_transformers = ranks() > 1

    def create_optimizer(self, model: Any = None) -> Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            make_moments(optimizer)
        return optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """A part at a time. The trainer's own accumulation counts batches, so that a pass over the text would end with
        fewer of them."""
        parts = inputs["input_ids"].chunk(self._parts)
        losses = [super(HealingTrainer, self).training_step(model, {"input_ids": part}) for part in parts]
        return torch.stack(losses).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        ids_BT, child = inputs["input_ids"], self.accelerator.unwrap_model(model)
        # The last of the hidden states is taken after the final norm. All logits together would take gigabytes.
        hidden = self._hidden_weight > 0 or -1  # all, or the last
        asked = {"output_hidden_states": hidden, "use_cache": False, "logits_to_keep": 1}
        with torch.no_grad():
            target = self._parent(ids_BT, **asked).hidden_states
        try:
            output = model(ids_BT, **asked)
        except NotFiniteError as error:  # A weight that is to be rounded
            raise NotFiniteError(
                f"healing: {error}, at step {self.state.global_step}; lower heal.learning_rate"
            ) from error
        loss = logit_kl(output.hidden_states[-1], target[-1], child.lm_head, self._parent.lm_head)
        if self._hidden_weight > 0:
            # The first of the hidden states is the embedding.
            distances = [
                1 - torch.cosine_similarity(hidden.float(), target[end].float(), dim=-1).mean()
                for hidden, end in zip(output.hidden_states[1:], self._ends, strict=True)
            ]
            loss = loss + self._hidden_weight * torch.stack(distances).mean()
        if model.training:
            loss = loss + regulariser(model)
        # All processes stop together: one that went on would wait for the others.
        found: Tensor = self.accelerator.gather(loss.detach())
        if not torch.isfinite(found).all():
            raise NotFiniteError(
                f"healing: the loss is {found.mean().item()} at step {self.state.global_step}; lower heal.learning_rate"
            )
        loss = loss / self._parts
        return (loss, output) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights are part of the state below, not whole in one process as the trainer writes them."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_state(output_dir, self.model, self.optimizer, self.lr_scheduler)  # type: ignore[arg-type]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights come with the moments, for which the optimiser has to be there."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_state(checkpoint, self.model, self.optimizer, self.lr_scheduler)  # type: ignore[arg-type]
