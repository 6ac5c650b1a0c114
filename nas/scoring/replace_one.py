"""Scores: replace one choice in the parent and see how far the parent's output moves (replace-1 scores; Puzzle,
arXiv 2411.19146, section 4.2).

One sweep over the parent's slots serves many choices: each variant starts from the parent's residual at its own slots,
which is at hand, and joins a stack of variants that runs through the rest of the parent together, so nothing before a
variant is ever computed for it. Tables begin with tokens of their own, and end in a head of their own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blocklib.activations import Activations
from blocklib.block import Choice
from blocklib.compute_dtype import converted_once
from blocklib.distil import Progress
from blocklib.kind import Weights
from blocklib.parent import Parent
from blocklib.stream import Variant, delta, embed, rotary, slot_delta, variant
from blocklib.tables import Ends
from nas.scoring.fidelity import Fidelity, FidelityMeter, numbers_at_once

# The stack of variants holds at most this many residual numbers (256 MiB in float32).
_STACK_AT_ONCE = 1 << 26
_PARENT = "parent"


@torch.no_grad()
def score(
    parent: Parent,
    weights: Mapping[Choice, Weights],
    activations: Activations,
    heard: Callable[[float, float], None] = lambda done, total: None,
) -> Iterator[Progress | dict[Choice, Fidelity]]:
    """Progress as it goes, then every choice's fidelity, its `lm_loss` being the rise over the parent's own.

    `weights` holds each choice's tensors; `activations` are the parent's on the text. `heard` is told far more often
    than a batch ends how much of the work is done, of how much. Raises NotFiniteError.
    """
    if not weights:
        yield {}
        return
    layers = {
        choice: variant(parent.model, choice, tensors) for choice, tensors in weights.items() if not choice.is_table
    }
    tables = {choice: Ends.of([(choice, tensors)]) for choice, tensors in weights.items() if choice.is_table}
    ids_BT = activations.ids_BT
    order = [*tables, *sorted(layers, key=lambda choice: choice.first_slot + choice.span)]
    at_once, batch = stacked(ids_BT.shape[1] * parent.shape.hidden, len(order), len(ids_BT))
    sweeps = [order[start : start + at_once] for start in range(0, len(order), at_once)]
    meters = [FidelityMeter([_PARENT, *map(str, swept)], parent.model.lm_head) for swept in sweeps]
    work = _Work(parent, sweeps, ids_BT, heard)
    done = 0
    for rows in torch.arange(len(ids_BT)).split(batch):
        ids = ids_BT[rows].to(parent.model.device)
        for swept, meter in zip(sweeps, meters, strict=True):
            here = _Swept([tables[one] for one in swept if one in tables], {c: layers[c] for c in swept if c in layers})
            parent_BTD, *models_BTD = _sweep(parent, here, activations, rows, work.passed_slots)
            count = len(here.tables)
            places = [0, *range(1 + count, 1 + len(models_BTD))]
            meter.add(ids, parent_BTD, [parent_BTD, *models_BTD[count:]], places, read=work.passed_head)
            for place, (held, model_BTD) in enumerate(zip(here.tables, models_BTD[:count], strict=True), 1):
                meter.add(ids, parent_BTD, [model_BTD], [place], held.head(parent.config), work.passed_head)
        done += ids.numel()
        yield Progress(done, ids_BT.numel())
    found = {name: fidelity for meter in meters for name, fidelity in meter.result().items()}
    base = found[_PARENT].lm_loss
    yield {
        choice: Fidelity(f.kl, f.lm_loss - base, f.top1_agreement, f.hidden_cosine)
        for choice in order
        for f in [found[str(choice)]]
    }


def stacked(one: int, variants: int, sequences: int) -> tuple[int, int]:
    """How many variants a sweep takes, and how many sequences at once, where the residual of a sequence is `one` number
    long. If not even one sequence of all variants of a large parent fits, several sweeps take a share of them each."""
    at_once = max(1, min(variants, _STACK_AT_ONCE // one - 1))
    return at_once, max(1, min(sequences, _STACK_AT_ONCE // (one * (at_once + 1))))


@dataclass(frozen=True, eq=False)
class _Swept:
    """The variants of one sweep: tables, then layers in order of the choices' ends."""

    tables: Sequence[Ends]
    layers: Mapping[Choice, Variant]


class _Work:
    """How much of it is done: a token of a model that passes a slot counts 1, and the head what it weighs in slots."""

    def __init__(
        self, parent: Parent, sweeps: Sequence[Sequence[Choice]], ids_BT: Tensor, heard: Callable[[float, float], None]
    ):
        slots = 2 * parent.shape.layers
        slot_parameters = sum(values.numel() for values in parent.model.model.layers.parameters()) / slots
        self._head = parent.shape.vocabulary * parent.shape.hidden / slot_parameters
        ends = [[choice.first_slot + choice.span for choice in swept if not choice.is_table] for swept in sweeps]
        lengths = [
            [0] + [slots] * (len(swept) - len(ended)) + [slots - end for end in ended]
            for swept, ended in zip(sweeps, ends, strict=True)
        ]
        self._total = ids_BT.numel() * sum(length + self._head for swept in lengths for length in swept)
        self._done, self._heard = 0.0, heard

    def passed_slots(self, tokens: int) -> None:
        self._done += tokens
        self._heard(self._done, self._total)

    def passed_head(self, tokens: int) -> None:
        self._done += self._head * tokens
        self._heard(self._done, self._total)


def _sweep(
    parent: Parent, swept: _Swept, activations: Activations, rows: Tensor, passed: Callable[[int], None]
) -> Tensor:
    """The final, normed hidden states of the parent and of the parent with each choice, in the sequences `rows`:
    [1 + choices, B, T, D].

    `passed` is told how many tokens more have gone through a slot.
    """
    layers, pending = swept.layers, list(swept.layers)
    ids_BT = activations.ids_BT[rows].to(parent.model.device)
    embedded_BTD = embed(parent.model, ids_BT)
    tables = rotary(parent.model, embedded_BTD)
    stack_NBTD = embedded_BTD.new_empty(1 + len(swept.tables) + len(pending), *embedded_BTD.shape)
    for place, held in enumerate(swept.tables, 1):
        stack_NBTD[place] = embed(parent.model, ids_BT, held.embedding_VD)
    joined, at_once = 1 + len(swept.tables), max(1, numbers_at_once(ids_BT.device) // embedded_BTD.numel())
    entering: dict[int, Tensor] = {}
    for here in activations.over(rows, 2 * parent.shape.layers):
        entering[here.slot] = here.entering_BTD
        with converted_once():
            for some_NBTD in stack_NBTD[1:joined].split(at_once) if joined > 1 else ():
                residual = some_NBTD.flatten(0, 1)
                residual += slot_delta(parent.model, here.slot, residual, tables)
        passed((joined - 1) * ids_BT.numel())
        while pending and pending[0].first_slot + pending[0].span == here.slot + 1:
            choice = pending.pop(0)
            before = entering[choice.first_slot]
            stack_NBTD[joined] = before + delta(layers[choice], before, tables)
            joined += 1
        oldest = min((choice.first_slot for choice in pending), default=here.slot)
        entering = {kept: value for kept, value in entering.items() if kept >= oldest}
    stack_NBTD[0] = here.entering_BTD + here.delta_BTD
    for residual_BTD in stack_NBTD:
        # In place: a second stack would be the most memory that a search takes.
        residual_BTD.copy_(parent.model.model.norm(residual_BTD))
    return stack_NBTD
