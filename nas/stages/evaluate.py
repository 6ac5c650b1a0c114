"""The child beside its parent on the same held-out tokens."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from blocklib.model import PuzzleNasForCausalLM
from nas.scoring.fidelity import Fidelity, FidelityMeter


@dataclass(frozen=True)
class Evaluations:
    """Evaluations on held-out tokens: the child before and after healing, and the parent against itself, for its own
    loss."""

    parent: Fidelity
    before: Fidelity
    after: Fidelity

    def plain(self) -> dict[str, dict[str, float]]:
        """The evaluation as the child's file keeps it."""
        return {name: vars(fidelity) for name, fidelity in vars(self).items()}

    @staticmethod
    def of(plain: Mapping[str, Mapping[str, float]]) -> "Evaluations":
        return Evaluations(**{name: Fidelity(**values) for name, values in plain.items()})


@torch.no_grad()
def evaluate(
    parent: PuzzleNasForCausalLM,
    child: PuzzleNasForCausalLM,
    ids_BT: Tensor,
    batch: int = 8,
    heard: Callable[[int, int], None] = lambda done, total: None,
) -> Fidelity:
    """Fidelity of the child, its `lm_loss` absolute. `ids_BT` is [sequences, tokens]; `heard` is told after each batch
    how many of the tokens are done, of how many. Raises NotFiniteError.

    Evaluating the parent against itself gives its own loss, and a KL of 0.
    """
    done = 0
    meter = FidelityMeter(["child"], parent.lm_head)
    for ids in ids_BT.split(batch):
        hidden_BTD = parent.model(ids.long(), use_cache=False).last_hidden_state
        child_BTD = hidden_BTD if child is parent else child.model(ids.long(), use_cache=False).last_hidden_state
        meter.add(ids, hidden_BTD, child_BTD[None], head=child.lm_head)
        done += ids.numel()
        heard(done, ids_BT.numel())
    return meter.result()["child"]


def perplexity(lm_loss: float) -> float:
    return math.exp(lm_loss)
