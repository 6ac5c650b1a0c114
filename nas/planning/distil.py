"""What the stage `distil` needs: the passes of `blocklib/initial_weights.py` and `blocklib/distil.py`, in numbers."""

from collections.abc import Sequence
from functools import partial

from blocklib.block import Choice
from nas.planning.need import Held, Need, total
from nas.planning.setting import FLOAT32, Setting
from nas.planning.task_ranges import by_count, by_layers

_FLOAT64 = 8
_IN_TRAINING = 5
"""Numbers held for each of a subblock in training: the weight, what it was before, its gradient, Adam's two moments."""
_GRAMS = 5
"""Matrices of normal equations at the end of a fit: of two parts of the text, of both, damped, and factorised."""
_CROSSES = 5
"""The same of right sides, the solution and its copy among them."""
_STREAMS = 5
"""Calibration streams at a slot beside those kept for joined ones: the residual there, what is added, the next
residual, the target of a fit, and the input of the FFN."""
_KEPT_OF_FFN, _KEPT_OF_REST = 7, 6
"""Numbers that a subblock's forward and backward pass holds for a token: for each hidden channel, and for each channel
of the residual."""


def distil_need(setting: Setting) -> Need:
    """The need of the fullest task, at its worse peak: when it fits first weights, or when it trains."""
    groups = task_groups(setting)
    if not groups:
        return Need("distil", once=setting.parent_once, tasks=0, workers=setting.places)
    passed = sum(_prefix(setting, group) * _tokens(setting, group) for group in groups)
    library = sum(map(setting.size, setting.to_build)) * FLOAT32
    return Need(
        "distil",
        each=(*setting.parent_each, *max((_peak(setting, group) for group in groups), key=total)),
        once=setting.parent_once,
        main=setting.parent_main,
        tasks=len(groups),
        at_once=setting.places,
        workers=setting.places,
        flops=sum(_flops(setting, group) for group in groups),
        parent_passes=passed / setting.shape.layers / max(_tokens(setting, group) for group in groups),
        disk=(Held("the block library, in float32", library, "space"),),
    )


def task_groups(setting: Setting) -> list[list[Choice]]:
    """The subblocks of each task, as the stage divides them."""
    if asked := setting.request.ray.layers_per_task:
        return by_count(setting.to_build, asked)
    return by_layers(setting.to_build, setting.places, lambda part: part.span)


def _peak(setting: Setting, group: Sequence[Choice]) -> tuple[Held, ...]:
    return max(_fitting(setting, group), _training(setting, group), key=total)


def _fitting(setting: Setting, group: Sequence[Choice]) -> tuple[Held, ...]:
    """When the last subblock is fitted: all others of the task are there, before and after their fit."""
    request, shape = setting.request, setting.shape
    fits = request.distill.least_squares
    projections = [setting.projection(part) for part in group] if fits else []
    first = sum(map(setting.size, group)) + sum(inputs * outputs for inputs, outputs in projections)
    equations = max(
        (_FLOAT64 * inputs * (_GRAMS * inputs + _CROSSES * outputs) for inputs, outputs in projections), default=0
    )
    calibration = setting.in_sequences(request.data.calibration_tokens)
    sequences = calibration // setting.sequence
    batch = min(request.distill.batch, max(1, sequences // 4)) * setting.sequence
    longest = max(part.span for part in group)
    streams = (_STREAMS + longest + (longest + 1) // 2) * calibration * shape.hidden * FLOAT32
    passed = batch * (_KEPT_OF_FFN * shape.ffn_width + _KEPT_OF_REST * shape.hidden) * FLOAT32
    layers = (longest + 1) // 2 * setting.layer_parameters * FLOAT32 + setting.ffn_parameters * FLOAT32
    return (
        Held(f"{len(group)} subblocks, before and after their fit", first * FLOAT32, "ray.layers_per_task"),
        Held("normal equations of the widest fit", equations, "distill.least_squares, or space.fuse.widest"),
        Held("residuals of the calibration text", streams, "data.calibration_tokens"),
        Held("activations of a batch", passed, "distill.batch"),
        Held("weights of the parent's layers at work, in float32", layers),
    )


def _training(setting: Setting, group: Sequence[Choice]) -> tuple[Held, ...]:
    request, shape = setting.request, setting.shape
    sizes = {part: setting.size(part) for part in group}
    held = sum(size * (_IN_TRAINING if setting.tokens_of(part) else 1) for part, size in sizes.items())
    batch = request.distill.batch * setting.sequence
    longest = max(part.span for part in group)
    widest = max(setting.projection(part)[0] for part in group)
    passed = batch * (_KEPT_OF_FFN * max(widest, shape.ffn_width) + _KEPT_OF_REST * shape.hidden) * FLOAT32
    kept = (2 * longest + 2) * batch * shape.hidden * FLOAT32
    layers = setting.ffn_parameters / shape.ffn_matrices * FLOAT32
    return (
        Held(
            f"{len(group)} subblocks in training: weights, before and now, gradients and Adam's moments",
            held * FLOAT32, "ray.layers_per_task",
        ),
        Held("activations of a batch", passed + kept, "distill.batch"),
        Held("a matrix of the parent at work, in float32", layers),
    )  # fmt: skip


def _flops(setting: Setting, group: Sequence[Choice]) -> float:
    """The parent up to the last layer, over the calibration and the distillation text; each subblock forward, backward
    and, once, its fit."""
    calibration = setting.in_sequences(setting.request.data.calibration_tokens)
    prefix = _prefix(setting, group) * setting.layer_parameters
    done = setting.pass_flops(prefix, calibration + _tokens(setting, group))
    done += sum(3 * setting.pass_flops(setting.size(part), setting.tokens_of(part)) for part in group)
    for inputs, outputs in map(setting.projection, group) if setting.request.distill.least_squares else ():
        done += 2.0 * calibration * inputs * (inputs + outputs) + 4 * 2 / 3 * inputs**3
    return done


def _prefix(setting: Setting, group: Sequence[Choice]) -> int:
    return max(part.end_layer for part in group)


def _tokens(setting: Setting, group: Sequence[Choice]) -> int:
    return max(map(partial(Setting.tokens_of, setting), group))
