"""What the stage `score` needs: the sweep of `nas/scoring/replace_one.py`, in numbers."""

from collections.abc import Sequence

from blocklib.block import Choice
from nas.planning.need import Held, Need, total
from nas.planning.setting import FLOAT32, Setting
from nas.planning.task_ranges import by_count, by_layers
from nas.scoring.fidelity import logit_rows
from nas.scoring.replace_one import stacked

_STACKS = 3
"""Tensors as large as the stack of variants while the final norm runs."""
_LOGITS = 7
"""Tensors as large as the logits of the rows at work: of parent and variant, their difference, and what a KL takes."""


def score_need(setting: Setting) -> Need:
    groups = _groups(setting)
    tokens = setting.in_sequences(setting.request.data.score_tokens)
    return Need(
        "score",
        each=(*setting.parent_each, *max((_task(setting, group) for group in groups), key=total, default=())),
        once=setting.parent_once,
        main=setting.parent_main,
        tasks=len(groups),
        at_once=setting.places,
        workers=setting.places,
        flops=sum(_flops(setting, group, tokens) for group in groups),
        parent_passes=float(len(groups)),
    )


def _groups(setting: Setting) -> list[list[Choice]]:
    layers = [choice for choice in setting.to_score if not choice.is_table]
    if asked := setting.request.ray.layers_per_task:
        return by_count(layers, asked)
    slots = 2 * setting.shape.layers
    per_slot = setting.layer_parameters / 2
    return by_layers(
        layers, setting.places, lambda choice: setting.head_parameters + per_slot * (slots - choice.first_slot)
    )


def _task(setting: Setting, group: Sequence[Choice]) -> tuple[Held, ...]:
    shape, one = setting.shape, setting.sequence * setting.shape.hidden
    at_once, batch = stacked(one, len(group), setting.request.data.score_tokens // setting.sequence)
    stack = (at_once + 1) * batch * one * FLOAT32
    rows = logit_rows(setting.device, shape.vocabulary) * shape.vocabulary * FLOAT32
    return (
        Held(f"weights of {len(group)} options, in float32", sum(map(setting.size, group)) * FLOAT32,
             "ray.layers_per_task"),
        Held("residuals of all options at once", _STACKS * stack, "data.sequence_length"),
        Held("the parent's head, and logits of some rows", setting.head_bytes + _LOGITS * rows),
        Held("an FFN of the parent, in float32", setting.ffn_parameters * FLOAT32),
    )  # fmt: skip


def _flops(setting: Setting, group: Sequence[Choice], tokens: int) -> float:
    """The parent once, each option from its slot on, and the head for all of them."""
    slots, per_slot = 2 * setting.shape.layers, setting.layer_parameters / 2
    passed = per_slot * slots + sum(
        setting.size(choice) + per_slot * (slots - choice.first_slot - choice.span) for choice in group
    )
    return setting.pass_flops(passed + setting.head_parameters * (2 * len(group) + 1), tokens)
