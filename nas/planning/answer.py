"""The needs of the stages after the solver: healing the child, evaluating it and exporting it.

Its size is known when it is found; before, it is taken to be as large as the budget lets it be.
"""

from dataclasses import replace

from nas.planning.inputs import FLOAT32, PlanInputs
from nas.planning.need import PROCESS_BYTES, Amount, Operations, StageNeed
from nas.scoring.fidelity import logit_rows

_MOMENTS = 2
_TRAINED = 1 + _MOMENTS
"""Numbers for each trained one beside itself: its gradient, and Adam's two moments."""
_OF_RESIDUAL, _OF_FFN = 9, 4
"""Numbers that a layer keeps of a token for its backward pass: for each channel of the residual, what two norms read
and make, and what the distance of hidden states keeps; for each channel of the FFN, gate, up, activation and product.
"""
_ENTERING = 4
"""The same for each channel of the residual where layers are computed again: what enters, and the distance."""
_AT_WORK = 3
"""Layers that a worker holds whole of a child that is divided: the one that runs, its gradient, and the next one."""
_LOGITS = 4
"""Tensors as large as the logits of the rows at work, in healing."""
_LIBRARY_LAYERS = "the child's layers from the library, in float32"
EVALUATED_TOGETHER = 8
"""Sequences that are evaluated at once."""


def heal_need(inputs: PlanInputs) -> StageNeed:
    """Healing, and the evaluation before and after it; the evaluation alone where the job heals nothing. Several
    workers hold a part each of what is trained; the parent is taken to be there as for one."""
    request, shape, child = inputs.request, inputs.shape, inputs.child_parameters
    evaluated = inputs.in_sequences(request.data.evaluation_tokens)
    states = Amount("the parent's states of the evaluation text", evaluated * shape.hidden * FLOAT32,
                  "data.evaluation_tokens")  # fmt: skip
    batch = max(EVALUATED_TOGETHER, request.heal.batch if request.heal else 0) * inputs.sequence
    rows = min(logit_rows(inputs.device, shape.vocabulary), batch) * shape.vocabulary * FLOAT32
    workers = request.heal.workers if request.heal else 1
    if request.heal or request.space.precision:
        held = [Amount("the child, in float32", child * FLOAT32 / workers, "budget"), states]
        disk = [Amount("the child, in float32", child * FLOAT32, "budget")]
    else:
        held = [Amount(_LIBRARY_LAYERS, inputs.child_layers_bytes, "budget"), states]
        disk = [Amount("the child, as it is assembled", inputs.child_bytes, "budget")]
    heads = inputs.head_bytes + inputs.head_parameters * inputs.copied_bytes
    held.append(Amount("heads as products read them, and logits of some rows", heads + _LOGITS * rows))
    tokens, steps = 0, 0.0
    if heals := request.heal:
        tokens = heals.tokens or inputs.in_sequences(request.data.distillation_tokens)
        sequences = min(heals.batch, max(1, request.data.distillation_tokens // inputs.sequence))
        steps = tokens / (sequences * inputs.sequence)
        trained = max(0.0, child - shape.fixed_parameters)
        matrices = trained / shape.layers if heals.recompute else trained
        if heals.lora_rank is not None:
            # Each matrix with its adapter is a tensor of its own, which the backward pass reads.
            trained = _adapters(inputs, heals.lora_rank)
            adapted = matrices * inputs.product_bytes + trained * FLOAT32
            held.append(Amount("matrices with their adapters", adapted, "heal.lora_rank"))
        elif inputs.copied_bytes:
            copied = matrices * inputs.copied_bytes
            held.append(Amount("matrices, as the backward pass reads them", copied, "heal.recompute"))
        held.append(Amount("gradients, and Adam's moments", _TRAINED * trained * FLOAT32 / workers, "heal.lora_rank"))
        if workers > 1:
            whole = _AT_WORK * child / shape.layers * FLOAT32
            held.append(Amount("layers that are whole while they run", whole))
        passed = _backward(inputs, sequences * inputs.sequence / heals.parts, bool(heals.recompute))
        held.append(Amount("activations of all layers", passed, "heal.batch"))
        checkpoint = (child + _MOMENTS * trained) * FLOAT32
        disk.append(Amount("two checkpoints of healing, while one replaces the other", 2 * checkpoint, "budget"))
    else:
        held.append(Amount("activations of a batch", _forward(inputs, EVALUATED_TOGETHER * inputs.sequence)))
    passes = 3 + bool(heals and heals.recompute)
    flops = inputs.pass_flops(passes * child + inputs.parent_parameters, tokens)
    flops += inputs.pass_flops((1 + bool(heals)) * child + inputs.parent_parameters, evaluated)
    passes_of_parent = steps + evaluated / (EVALUATED_TOGETHER * inputs.sequence)
    return StageNeed(
        "heal" if heals else "evaluate",
        each=(*inputs.parent_each, *held),
        once=inputs.parent_once,
        main=(*inputs.parent_main, inputs.text),
        disk=tuple(disk),
        tasks=replace(inputs.tasks(1, alone=True), count=workers, at_once=workers, workers=workers),
        work=Operations(flops=flops, moved_bytes=passes_of_parent * inputs.moved_by_a_pass),
    )


def export_need(inputs: PlanInputs) -> StageNeed:
    """The child is on a worker, and in the process that loads the files again; beside a GGUF file it is in float32,
    too."""
    request, child = inputs.request, inputs.child_parameters
    files = inputs.served.weight_bytes * child / inputs.parent_parameters
    is_whole = request.heal is not None or bool(request.space.precision)
    rounded = child * FLOAT32 if request.export_format == "gguf" else 0.0
    return StageNeed(
        "export",
        main=(
            Amount("the child, from its file", child * FLOAT32 if is_whole else inputs.child_bytes, "budget"),
            Amount("the child, as it is written", files, "budget"),
            Amount("the child loaded again", files + rounded, "budget"),
            Amount("the process that loads it", PROCESS_BYTES),
        ),
        disk=(Amount("the exported child", files, "budget"),),
        tasks=replace(inputs.tasks(1, alone=True), workers=1),
    )


def _forward(inputs: PlanInputs, tokens: int) -> float:
    of_ffn = _OF_FFN * inputs.shape.ffn_width * inputs.product_bytes
    return tokens * (of_ffn + _OF_RESIDUAL * inputs.shape.hidden * FLOAT32)


def _backward(inputs: PlanInputs, tokens: float, recomputed: bool) -> float:
    """A child as deep as its parent, and as wide: a subblock that is left out would take nothing."""
    shape = inputs.shape
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    multiplied = (attention + _OF_FFN * shape.ffn_width) * inputs.product_bytes
    layer = _OF_RESIDUAL * shape.hidden * FLOAT32 + multiplied
    return tokens * (layer + shape.layers * _ENTERING * shape.hidden * FLOAT32 if recomputed else shape.layers * layer)


def _adapters(inputs: PlanInputs, rank: int) -> float:
    """The numbers of the adapters of all layers."""
    shape = inputs.shape
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    ends = 2 * (shape.hidden + queries) + 2 * (shape.hidden + keys)
    ends += shape.ffn_matrices * (shape.hidden + shape.ffn_width)
    return float(rank * ends * shape.layers)
