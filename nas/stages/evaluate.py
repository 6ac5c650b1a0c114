"""The child beside its parent on the same held-out tokens."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blocklib.block import Architecture
from blocklib.model import PuzzleNasForCausalLM
from blocklib.precisions.keys_and_values import KeptType, kept_in
from nas.planning.answer import EVALUATED_TOGETHER
from nas.scoring.fidelity import Fidelity, FidelityMeter

_EVALUATED = ("parent", "before", "after")


@dataclass(frozen=True)
class Evaluations:
    """Evaluations on held-out tokens: the child before and after healing, and the parent against itself, for its own
    loss. `curve` has the points of healing, tokens and loss; none where the child was not healed. `sample` are tokens
    by the child, with those that it continues."""

    parent: Fidelity
    before: Fidelity
    after: Fidelity
    curve: tuple[tuple[float, float], ...] = ()
    sample: tuple[int, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The evaluation as the child's file keeps it."""
        kept = {"curve": self.curve, "sample": self.sample}
        return {name: vars(getattr(self, name)) for name in _EVALUATED} | kept

    @staticmethod
    def of(plain: Mapping[str, Any]) -> "Evaluations":
        curve = tuple((tokens, loss) for tokens, loss in plain.get("curve", ()))
        parent, before, after = (Fidelity(**plain[name]) for name in _EVALUATED)
        return Evaluations(parent, before, after, curve, tuple(plain.get("sample", ())))


class Evaluator:
    """Evaluates children of one parent on the same held-out tokens, `ids_BT` [sequences, tokens], of which `batch`
    sequences run at a time. The parent runs once: its final hidden states are kept.

    Evaluating the parent itself gives its own loss, and a KL of 0.
    """

    def __init__(self, parent: PuzzleNasForCausalLM, ids_BT: Tensor, batch: int = EVALUATED_TOGETHER):
        self._parent = parent
        self._batches = ids_BT.split(batch)
        self._tokens = ids_BT.numel()
        self._states: list[Tensor] = []

    @torch.no_grad()
    def evaluate(
        self, child: PuzzleNasForCausalLM, heard: Callable[[int, int], None] = lambda done, total: None
    ) -> Fidelity:
        """Fidelity of the child, its `lm_loss` absolute. `heard` is told after each batch how many of the tokens are
        done, of how many. Raises NotFiniteError."""
        done = 0
        meter = FidelityMeter(["child"], self._parent.lm_head)
        for index, ids in enumerate(self._batches):
            if index == len(self._states):
                self._states.append(_states(self._parent, ids))
            own_BTD = self._states[index]
            child_BTD = own_BTD if child is self._parent else _states(child, ids)
            meter.add(ids, own_BTD, [child_BTD], head=child.lm_head)
            done += ids.numel()
            heard(done, self._tokens)
        return meter.result()["child"]


def evaluate(parent: PuzzleNasForCausalLM, child: PuzzleNasForCausalLM, ids_BT: Tensor) -> Fidelity:
    """Fidelity of one child on held-out tokens, as an `Evaluator` gives it."""
    return Evaluator(parent, ids_BT).evaluate(child)


def _states(model: PuzzleNasForCausalLM, ids_BT: Tensor) -> Tensor:
    """The final, normed hidden states, [sequences, tokens, hidden], with keys and values in the type that the model's
    architecture says."""
    with kept_in(KeptType.of(Architecture.parse(model.config.architecture), model.config)):
        states: Tensor = model.model(ids_BT.long(), use_cache=False).last_hidden_state
    return states


def perplexity(lm_loss: float) -> float:
    return math.exp(lm_loss)
