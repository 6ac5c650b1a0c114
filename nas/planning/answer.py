"""What the stages after the solver need: healing the child, evaluating it and exporting it.

Its size is known when it is found; before, it is taken to be as large as the budget lets it be.
"""

from nas.planning.inputs import FLOAT32, PlanInputs
from nas.planning.need import PROCESS_BYTES, Amount, StageNeed
from nas.scoring.fidelity import logit_rows

_MOMENTS = 2
_TRAINED = 1 + _MOMENTS
"""Numbers for each trained one beside itself: its gradient, and Adam's two moments."""
_OF_RESIDUAL, _OF_FFN = 9, 4
"""Numbers that a layer keeps of a token for its backward pass: for each channel of the residual, what two norms read
and make, and what the distance of hidden states keeps; for each channel of the FFN, gate, up, activation and product.
"""
_LOGITS = 4
"""Tensors as large as the logits of the rows at work, in healing."""
EVALUATED_TOGETHER = 8
"""Sequences that are evaluated at once."""


def heal_need(inputs: PlanInputs) -> StageNeed:
    """Healing, and the evaluation before and after it; the evaluation alone where the job heals nothing."""
    request, shape, child = inputs.request, inputs.shape, inputs.child_parameters
    evaluated = inputs.in_sequences(request.data.evaluation_tokens)
    states = Amount("the parent's states of the evaluation text", evaluated * shape.hidden * FLOAT32,
                  "data.evaluation_tokens")  # fmt: skip
    rows = logit_rows(inputs.device, shape.vocabulary) * shape.vocabulary * FLOAT32
    held = [Amount("the child, in float32", child * FLOAT32, "budget"), states]
    held.append(Amount("the parent's head, and logits of some rows", inputs.head_bytes + _LOGITS * rows))
    disk = [Amount("the child, in float32", child * FLOAT32, "budget")]
    tokens, steps = 0, 0.0
    if heals := request.heal:
        tokens = heals.tokens or inputs.in_sequences(request.data.distillation_tokens)
        sequences = min(heals.batch, max(1, request.data.distillation_tokens // inputs.sequence))
        steps = tokens / (sequences * inputs.sequence)
        trained = max(0.0, child - inputs.table_parameters)
        held.append(Amount("gradients, and Adam's moments", _TRAINED * trained * FLOAT32, "budget"))
        held.append(Amount("activations of all layers", _backward(inputs, sequences * inputs.sequence), "heal.batch"))
        disk.append(Amount("a checkpoint of healing", (child + _MOMENTS * trained) * FLOAT32, "budget"))
    else:
        held.append(Amount("activations of a batch", _forward(inputs, EVALUATED_TOGETHER * inputs.sequence)))
    flops = inputs.pass_flops(3 * child + inputs.parent_parameters, tokens)
    flops += inputs.pass_flops((1 + bool(heals)) * child + inputs.parent_parameters, evaluated)
    return StageNeed(
        "heal" if heals else "evaluate",
        each=(*inputs.parent_each, *held),
        once=inputs.parent_once,
        main=inputs.parent_main,
        disk=tuple(disk),
        workers=inputs.places,
        flops=flops,
        moved_bytes=(steps + evaluated / (EVALUATED_TOGETHER * inputs.sequence)) * inputs.moved_by_a_pass,
        parent_passes=1.0,
    )


def export_need(inputs: PlanInputs) -> StageNeed:
    """The child is in the process that the user started, and in the one that loads the files again."""
    child = inputs.child_parameters
    files = child * inputs.scenario.bytes_per_value
    copied = 0.0 if inputs.scenario.bytes_per_value == FLOAT32 else files
    return StageNeed(
        "export",
        main=(
            Amount("the child, in float32", child * FLOAT32, "budget"),
            Amount("the child loaded again, in float32 and as it is written", child * FLOAT32 + copied, "budget"),
            Amount("the process that loads it", PROCESS_BYTES),
        ),
        disk=(Amount("the exported child", files, "budget"),),
        workers=inputs.places,
    )


def _forward(inputs: PlanInputs, tokens: int) -> float:
    return tokens * (_OF_FFN * inputs.shape.ffn_width + _OF_RESIDUAL * inputs.shape.hidden) * FLOAT32


def _backward(inputs: PlanInputs, tokens: int) -> float:
    """Of a child as deep as its parent, and as wide: what is left out of it costs nothing."""
    shape = inputs.shape
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    return tokens * shape.layers * (_OF_RESIDUAL * shape.hidden + attention + _OF_FFN * shape.ffn_width) * FLOAT32
