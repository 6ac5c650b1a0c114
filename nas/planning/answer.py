"""What the stages after the solver need: healing the child, evaluating it and exporting it.

Its size is known when it is found; before, it is taken to be as large as the budget lets it be.
"""

from nas.planning.need import PROCESS_BYTES, Held, Need
from nas.planning.setting import FLOAT32, Setting
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


def heal_need(setting: Setting) -> Need:
    """Healing, and the evaluation before and after it; the evaluation alone where the job heals nothing."""
    request, shape, child = setting.request, setting.shape, setting.child_parameters
    evaluated = setting.in_sequences(request.data.evaluation_tokens)
    states = Held("the parent's states of the evaluation text", evaluated * shape.hidden * FLOAT32,
                  "data.evaluation_tokens")  # fmt: skip
    rows = logit_rows(setting.device, shape.vocabulary) * shape.vocabulary * FLOAT32
    held = [Held("the child, in float32", child * FLOAT32, "budget"), states]
    held.append(Held("the parent's head, and logits of some rows", setting.head_bytes + _LOGITS * rows))
    disk, tokens = [Held("the child, in float32", child * FLOAT32, "budget")], 0
    if heals := request.heal:
        tokens = heals.tokens or setting.in_sequences(request.data.distillation_tokens)
        sequences = min(heals.batch, max(1, request.data.distillation_tokens // setting.sequence))
        trained = max(0.0, child - setting.table_parameters)
        held.append(Held("gradients, and Adam's moments", _TRAINED * trained * FLOAT32, "budget"))
        held.append(Held("activations of all layers", _backward(setting, sequences * setting.sequence), "heal.batch"))
        disk.append(Held("a checkpoint of healing", (child + _MOMENTS * trained) * FLOAT32, "budget"))
    else:
        held.append(Held("activations of a batch", _forward(setting, EVALUATED_TOGETHER * setting.sequence)))
    flops = setting.pass_flops(3 * child + setting.parent_parameters, tokens)
    flops += setting.pass_flops((1 + bool(heals)) * child + setting.parent_parameters, evaluated)
    return Need(
        "heal" if heals else "evaluate",
        each=(*setting.parent_each, *held),
        once=setting.parent_once,
        main=setting.parent_main,
        disk=tuple(disk),
        workers=setting.places,
        flops=flops,
        parent_passes=1.0,
    )


def export_need(setting: Setting) -> Need:
    """The child is in the process that the user started, and in the one that loads the files again."""
    child = setting.child_parameters
    files = child * setting.scenario.bytes_per_value
    copied = 0.0 if setting.scenario.bytes_per_value == FLOAT32 else files
    return Need(
        "export",
        main=(
            Held("the child, in float32", child * FLOAT32, "budget"),
            Held("the child loaded again, in float32 and as it is written", child * FLOAT32 + copied, "budget"),
            Held("the process that loads it", PROCESS_BYTES),
        ),
        disk=(Held("the exported child", files, "budget"),),
        workers=setting.places,
    )


def _forward(setting: Setting, tokens: int) -> float:
    return tokens * (_OF_FFN * setting.shape.ffn_width + _OF_RESIDUAL * setting.shape.hidden) * FLOAT32


def _backward(setting: Setting, tokens: int) -> float:
    """Of a child as deep as its parent, and as wide: what is left out of it costs nothing."""
    shape = setting.shape
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    return tokens * shape.layers * (_OF_RESIDUAL * shape.hidden + attention + _OF_FFN * shape.ffn_width) * FLOAT32
