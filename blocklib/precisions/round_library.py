"""Subblocks rounded on the parent's own activations: many of them, each to several precisions, from one pass.

What enters a subblock is the parent's residual; what enters its inner matrices comes of the subblock itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blocklib.block import Choice, Role
from blocklib.compute_dtype import converted_once
from blocklib.kind import Weights
from blocklib.parent import Parent
from blocklib.precisions.layer_moments import LayerMoments
from blocklib.precisions.moments import InputMoments, MomentMeter
from blocklib.precisions.parts import round_part
from blocklib.precisions.rounding import How
from blocklib.shape import Shape
from blocklib.stream import delta, embed, rotary, slot_delta, variant
from blocklib.tables import EMBEDDING, HEAD

RoundedPart = tuple[Choice, dict[str, Tensor]]


@torch.no_grad()
def round_parts(
    parent: Parent,
    parts: Sequence[Choice],
    weights_of: Callable[[Choice], Weights],
    calibration_BT: Tensor,
    batch: int,
    how: How = "refit",
) -> Iterator[RoundedPart]:
    """Every part, a subblock or tables that have a precision, with its tensors as `round_part` gives them.

    `weights_of` gives the tensors of a part without its precision. `calibration_BT` are token ids, [sequences, tokens],
    of which `batch` sequences run at a time. Memory holds the residuals of all of them at one slot.
    """
    model, shape = parent.model, parent.shape
    wanted: dict[Choice, list[str]] = {}
    for part in parts:
        wanted.setdefault(part.unrounded, []).append(part.precision)
    pending = sorted(wanted, key=lambda part: (part.first_slot, part.span))
    residuals = [embed(model, ids) for ids in calibration_BT.split(batch)]
    tables = rotary(model, residuals[0])
    for slot in range(2 * shape.layers):
        while pending and pending[0].first_slot == slot:
            part = pending.pop(0)
            weights = weights_of(part)
            layer = variant(model, part, weights)
            inputs = LayerMoments(layer)
            with inputs.gathered():
                for residual in residuals:
                    delta(layer, residual, tables)
            yield from _in_each(part, wanted[part], weights, inputs.result(), (shape, how))
        if not pending:
            return
        with converted_once():
            for residual in residuals:
                residual += slot_delta(model, slot, residual, tables)
    if not pending:
        return
    meter = MomentMeter()
    for residual in residuals:
        meter.add(model.model.norm(residual))
    for part in pending:
        moments = table_moments(meter.moments_II(), part.role, shape)
        yield from _in_each(part, wanted[part], weights_of(part), moments, (shape, how))


def table_moments(head_DD: Tensor, role: Role, shape: Shape) -> dict[str, InputMoments]:
    """The moments of the matrices of tables of that role, given those of what enters the head, [D, D].

    A row of the embedding is read as it is, so the error of each number counts alike. Where one matrix is both, both
    count alike.
    """
    even_DD = torch.eye(len(head_DD), dtype=head_DD.dtype, device=head_DD.device)
    own_DD = head_DD / head_DD.diagonal().mean().clamp_min(1e-30)
    if role == "tables" and shape.tied:
        return {EMBEDDING: InputMoments(own_DD + even_DD)}
    return {EMBEDDING: InputMoments(even_DD), HEAD: InputMoments(own_DD)}


def _in_each(
    part: Choice,
    precisions: Sequence[str],
    weights: Weights,
    moments: Mapping[str, InputMoments],
    setting: tuple[Shape, How],
) -> Iterator[RoundedPart]:
    assert not isinstance(part.what, tuple)
    for precision in precisions:
        stored = replace(part, what=part.what.at(precision))  # type: ignore[union-attr]
        yield stored, round_part(stored, weights, moments, *setting)
