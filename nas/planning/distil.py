"""The need of the stage `distil`: the passes of `blocklib/activations.py`, `initial_weights.py` and `distil.py`, in
numbers."""

from collections.abc import Sequence
from dataclasses import replace

from blocklib.block import Choice
from nas.planning.inputs import FLOAT32, PlanInputs
from nas.planning.need import Amount, Operations, StageNeed, Tasks, total
from nas.planning.task_ranges import distinct, prefix_tokens

_FLOAT64 = 8
_IN_TRAINING = 4
"""Numbers held for each of a subblock in training: the weight, what it was before, Adam's two moments. Only one has
gradients at a time."""
_GRAMS = 5
"""Matrices of normal equations at the end of a fit: of two parts of the text, of both, damped, and factorised."""
_CROSSES = 5
"""The same of right sides, the solution and its copy among them."""
_SOLVES, _CHECKS = 5, 4
"""Three ridges are solved for and checked, the best twice more, and checked once more."""
_STREAMS = 6
"""Residuals of a batch at a fit: what enters, the residual at a slot, what is added, the next one, the target, and what
is missing."""
_KEPT_OF_FFN, _KEPT_OF_REST = 7, 6
"""Numbers that a subblock's forward and backward pass holds for a token: for each hidden channel, and for each channel
of the residual."""


def distil_need(inputs: PlanInputs) -> StageNeed:
    """The need of the fullest task, at its worse peak: when it fits first weights, or when it trains."""
    groups = inputs.groups(inputs.to_build, lambda part: part.span)
    if not groups:
        return StageNeed("distil", tasks=Tasks(0))
    alike, caches = inputs.built_alike, inputs.caches_training(groups)
    run_over, layers = _run_over(inputs, groups, caches), inputs.layer_parameters * inputs.shape.layers
    library = sum(count * inputs.size(part) for part, count in alike) * FLOAT32
    once, each = _held(inputs, groups)
    return StageNeed(
        "distil",
        each=each,
        once=once,
        main=(*inputs.parent_main, inputs.text),
        tasks=inputs.tasks(len(groups)),
        work=Operations(
            flops=inputs.pass_flops(layers, run_over) + sum(count * _trained(inputs, part) for part, count in alike),
            float32_flops=sum(count * _summed(inputs, part) for part, count in alike),
            float64_flops=sum(count * _solved(inputs, part) for part, count in alike),
            moved_bytes=run_over / _batch(inputs) * inputs.moved_by_a_pass,
        ),
        disk=(
            Amount("the block library, in float32", library, "space"),
            replace(inputs.text, what="the training text, as tokens"),
            inputs.activations(caches),
        ),
    )


def _held(inputs: PlanInputs, groups: Sequence[Sequence[Choice]]) -> tuple[tuple[Amount, ...], tuple[Amount, ...]]:
    """Memory of all tasks together, and of each: while subblocks train, or while the parent runs, where that takes
    more. Tasks that train map only the layers that they work on."""
    each = (*inputs.parent_each, *max((_peak(inputs, group) for group in distinct(groups)), key=total))
    if not inputs.parent_once or inputs.is_mapped or not inputs.machine.is_cpu:
        return inputs.parent_once, each
    layer = inputs.layer_parameters * inputs.stored_bytes
    most = max(len({part.layer for part in group}) for group in groups)
    training = (*each, Amount("the parent's layers at work, mapped from its files", most * layer))
    mapped = (Amount("the parent's layers, mapped from its files", inputs.shape.layers * layer),)
    passing = (
        Amount("activations of a batch", _passed(inputs, _batch(inputs), inputs.shape.ffn_width), "distill.batch"),
        Amount("an FFN of the parent, as products read it", inputs.converted_bytes(inputs.ffn_parameters)),
    )
    together = min(len(groups), inputs.places)
    if together * total(training) > total(mapped) + together * total(passing):
        return (), training
    return mapped, passing


def _batch(inputs: PlanInputs) -> int:
    """Its tokens."""
    return inputs.request.distill.batch * inputs.sequence


def _peak(inputs: PlanInputs, group: Sequence[Choice]) -> tuple[Amount, ...]:
    return max(_fitting(inputs, group), _training(inputs, group), key=total)


def _fitting(inputs: PlanInputs, group: Sequence[Choice]) -> tuple[Amount, ...]:
    """When the last subblock is fitted: all others of the task are there, before and after their fit."""
    request, shape = inputs.request, inputs.shape
    projections = _fits(inputs, group)
    first = sum(map(inputs.size, group)) + sum(wide * out for wide, out in projections)
    equations = max((_FLOAT64 * wide * (_GRAMS * wide + _CROSSES * out) for wide, out in projections), default=0)
    calibration = inputs.in_sequences(request.data.calibration_tokens)
    sequences = calibration // inputs.sequence
    batch = min(request.distill.batch, max(1, sequences // 4)) * inputs.sequence
    longest = max(part.span for part in group)
    read = (1 + (longest + 1) // 2) * calibration * shape.hidden * FLOAT32
    passed = _passed(inputs, batch, shape.ffn_width)
    layers = (longest + 1) // 2 * inputs.layer_parameters * FLOAT32
    return (
        Amount(f"{len(group)} subblocks, before and after their fit", first * FLOAT32, "ray.layers_per_task"),
        Amount("normal equations of the widest fit", equations, "distill.least_squares, or space.fuse.widest"),
        Amount("what FFNs read of the calibration text", read, "data.calibration_tokens"),
        Amount("activations of a batch", passed + _STREAMS * batch * shape.hidden * FLOAT32, "distill.batch"),
        Amount("weights of the parent's layers at work, in float32", layers),
    )


def _training(inputs: PlanInputs, group: Sequence[Choice]) -> tuple[Amount, ...]:
    request, shape = inputs.request, inputs.shape
    sizes = {part: inputs.size(part) for part in group}
    held = sum(size * (_IN_TRAINING if inputs.tokens_of(part) else 1) for part, size in sizes.items())
    batch = request.distill.batch * inputs.sequence
    longest = max(part.span for part in group)
    widest = max(inputs.projection(part)[0] for part in group)
    passed = _passed(inputs, batch, max(widest, shape.ffn_width))
    kept = (2 * longest + 2) * batch * shape.hidden * FLOAT32
    return (
        Amount(
            f"{len(group)} subblocks in training: weights, before and now, and Adam's moments",
            held * FLOAT32, "ray.layers_per_task",
        ),
        Amount("gradients of a subblock", max(sizes.values()) * FLOAT32),
        Amount("activations of a batch", passed + kept, "distill.batch"),
        Amount("a subblock, as products read it", max(sizes.values()) * inputs.copied_bytes),
    )  # fmt: skip


def _passed(inputs: PlanInputs, tokens: int, width: int) -> float:
    """The bytes that a pass of one subblock holds: its hidden channels in the type of products, the residual in
    float32."""
    of_ffn, of_rest = _KEPT_OF_FFN * width * inputs.product_bytes, _KEPT_OF_REST * inputs.shape.hidden * FLOAT32
    return tokens * (of_ffn + of_rest)


def _run_over(inputs: PlanInputs, groups: Sequence[Sequence[Choice]], caches: bool) -> float:
    """The tokens that the whole parent runs over: the texts that train and score; or of the former only its head, and
    for each group, up to its last layer, as much as it trains on."""
    data, layers = inputs.request.data, inputs.shape.layers
    scored = inputs.in_sequences(data.score_tokens)
    if caches:
        return scored + inputs.in_sequences(data.distillation_tokens)
    most = max(map(inputs.tokens_of, inputs.to_build))
    return scored + inputs.in_sequences(data.calibration_tokens) + prefix_tokens(groups, most, layers)


def _trained(inputs: PlanInputs, part: Choice) -> float:
    """A subblock forward and backward."""
    return 3 * inputs.pass_flops(inputs.size(part), inputs.tokens_of(part))


def _summed(inputs: PlanInputs, part: Choice) -> float:
    """The sums of normal equations."""
    calibration = inputs.in_sequences(inputs.request.data.calibration_tokens)
    return sum(2.0 * calibration * wide * (wide + out) for wide, out in _fits(inputs, [part]))


def _solved(inputs: PlanInputs, part: Choice) -> float:
    """Factorising, and products with right sides."""
    each = ((2 / 3 * wide**3 + 2 * wide**2 * out, 2.0 * wide**2 * out) for wide, out in _fits(inputs, [part]))
    return sum(_SOLVES * solve + _CHECKS * check for solve, check in each)


def _fits(inputs: PlanInputs, group: Sequence[Choice]) -> list[tuple[int, int]]:
    """The inputs and outputs of every matrix that is fitted."""
    return [inputs.projection(part) for part in group] if inputs.request.distill.least_squares else []
