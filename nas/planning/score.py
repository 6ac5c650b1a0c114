"""The need of the stage `score`: the sweep of `nas/scoring/replace_one.py`, in numbers."""

from collections.abc import Sequence

from blocklib.block import Choice
from nas.planning.disk import leaves_room
from nas.planning.inputs import FLOAT32, PlanInputs
from nas.planning.need import Amount, Operations, StageNeed, total
from nas.planning.task_ranges import distinct
from nas.scoring.fidelity import logit_rows
from nas.scoring.replace_one import stacked

_LOGITS = 8
"""Tensors as large as the logits of the rows at work: seven of parent and variants, their differences and what a KL
takes, and about one that the allocator keeps."""


def score_need(inputs: PlanInputs) -> StageNeed:
    slots, per_slot = 2 * inputs.shape.layers, inputs.layer_parameters / 2
    groups = inputs.groups(
        inputs.to_score, lambda choice: inputs.head_parameters + per_slot * (slots - choice.first_slot)
    )
    tokens = inputs.in_sequences(inputs.request.data.score_tokens)
    held = inputs.activation_bytes(tokens)
    activations = Amount("the parent's activations on the score text", held, "data.score_tokens")
    return StageNeed(
        "score",
        each=(*inputs.parent_each, *max((_task(inputs, group) for group in distinct(groups)), key=total, default=())),
        once=inputs.parent_once,
        main=inputs.parent_main,
        tasks=inputs.tasks(len(groups)),
        disk=(activations,) if leaves_room(activations.held_bytes, inputs.machine.disk_bytes) else (),
        work=Operations(
            flops=sum(_flops(inputs, group, tokens) for group in groups),
            moved_bytes=sum(_sweeps(inputs, group) for group in groups) * inputs.moved_by_a_pass,
        ),
    )


def _sweeps(inputs: PlanInputs, group: Sequence[Choice]) -> int:
    """How often a layer of the parent is used."""
    one, sequences = inputs.sequence * inputs.shape.hidden, inputs.request.data.score_tokens // inputs.sequence
    at_once, batch = stacked(one, len(group), sequences)
    return -(-len(group) // at_once) * -(-sequences // batch)


def _task(inputs: PlanInputs, group: Sequence[Choice]) -> tuple[Amount, ...]:
    shape, one = inputs.shape, inputs.sequence * inputs.shape.hidden
    at_once, batch = stacked(one, len(group), inputs.request.data.score_tokens // inputs.sequence)
    stack = (at_once + 1) * batch * one * FLOAT32
    logits = min(logit_rows(inputs.device, shape.vocabulary), batch * inputs.sequence) * shape.vocabulary
    held = _LOGITS * FLOAT32 + inputs.copied_bytes
    return (
        Amount(f"weights of {len(group)} options, in float32", sum(map(inputs.size, group)) * FLOAT32,
             "ray.layers_per_task"),
        Amount("residuals of all options at once", stack, "data.sequence_length"),
        Amount("the parent's head, and logits of some rows", inputs.head_bytes + held * logits),
        Amount("an FFN of the parent, as products read it", inputs.converted_bytes(inputs.ffn_parameters)),
    )  # fmt: skip


def _flops(inputs: PlanInputs, group: Sequence[Choice], tokens: int) -> float:
    """Each option from its slot on, and the head for all of them."""
    slots, per_slot = 2 * inputs.shape.layers, inputs.layer_parameters / 2
    passed = sum(inputs.size(choice) + per_slot * (slots - choice.first_slot - choice.span) for choice in group)
    return inputs.pass_flops(passed + inputs.head_parameters * (2 * len(group) + 1), tokens)
