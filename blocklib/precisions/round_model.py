"""A whole child rounded to the precisions of its architecture, layer by layer on its own stream.

Each matrix is rounded on the inputs that it has behind the rounded layers before it (as in GPTQ, arXiv 2210.17323,
section 4), so a layer knows what those before it did.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from blocklib.assemble import MODULES
from blocklib.block import SKIP, Architecture, Block, Choice
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import child_config, model_with, own_shape
from blocklib.precisions.layer_moments import LayerMoments
from blocklib.precisions.moments import MomentMeter
from blocklib.precisions.parts import as_floats, round_part
from blocklib.precisions.round_library import table_moments
from blocklib.precisions.rounding import How
from blocklib.shape import Shape
from blocklib.stream import embed, rotary
from blocklib.tables import EMBEDDING, HEAD, table_names

Stored = dict[str, Tensor]
"""Matrices as they lie in a file, uint8 [outputs, bytes of a row], by their names in the model."""
_TABLES: How = "feedback"
"""A vocabulary has more rows than all of a layer, and refitting takes as long again for an error little smaller."""


@torch.no_grad()
def round_model(
    child: PuzzleNasForCausalLM,
    architecture: Architecture,
    calibration_BT: Tensor,
    batch: int,
    how: How = "refit",
    heard: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[PuzzleNasForCausalLM, Stored]:
    """The child of that architecture, whose shapes are the child's own, with the weights that its precisions leave of
    the child's, in float32; and the rounded matrices. The child itself is not changed.

    `calibration_BT` are token ids, [sequences, tokens], of which `batch` sequences run at a time; `heard` is told how
    many layers are done, of how many. Raises NotFiniteError, naming tensor, row and block.
    """
    assert str(architecture.unrounded) == str(Architecture.parse(child.config.architecture).unrounded)
    shape = own_shape(child.config)
    weights = {name: tensor.float() for name, tensor in child.state_dict().items()}
    stored: Stored = {}
    batches = calibration_BT.split(batch)
    if architecture.tables:
        meter = MomentMeter()
        for ids in batches:
            meter.add(child.model(ids.long(), use_cache=False).last_hidden_state)
        moments_II = meter.moments_II()
    for part in architecture.table_choices():
        own = {name: weights[name] for name in table_names(part.role, shape.tied)}
        found = round_part(
            part, own, table_moments(moments_II, part.role, shape), shape, _TABLES if how == "refit" else how
        )
        weights |= as_floats(part, found, shape)
        stored |= found
        if part.role == "tables" and shape.tied:
            weights[HEAD] = weights[EMBEDDING]
    config = child_config(child.config, architecture, shape)
    rounded = model_with(config, {name: tensor.clone() for name, tensor in weights.items()})
    residuals = [embed(rounded, ids) for ids in batches]
    placed = list(architecture.placed())
    for index, ((start, block), layer) in enumerate(zip(placed, rounded.model.layers, strict=True)):
        stored |= _round_layer(layer, (start, block, index), residuals, rounded, (shape, how))
        heard(index + 1, len(placed))
    return rounded, stored


def _round_layer(
    layer: nn.Module,
    place: tuple[int, Block, int],
    residuals: list[Tensor],
    model: PuzzleNasForCausalLM,
    setting: tuple[Shape, How],
) -> Stored:
    """Round a layer where it stands, and add its output to the residuals. Returns its rounded matrices."""
    start, block, index = place
    tables = rotary(model, residuals[0])
    stored: Stored = {}
    for part in Choice(start, "block", block).parts:
        if part.what == SKIP:
            continue
        norm, module = (layer.get_submodule(name) for name in MODULES[part.role])
        how = {"position_embeddings": tables, "attention_mask": None, "cache": None} if part.role == "attention" else {}
        if part.precision:
            inputs = LayerMoments(layer)
            with inputs.gathered():
                for residual in residuals:
                    module(norm(residual), **how)
            own = {name: tensor for name, tensor in layer.state_dict().items()
                   if name.partition(".")[0] in MODULES[part.role]}  # fmt: skip
            found = round_part(part, own, inputs.result(), *setting)
            layer.load_state_dict(as_floats(part, found, setting[0]), strict=False, assign=True)
            stored |= {
                f"model.layers.{index}.{name}": tensor for name, tensor in found.items() if tensor.dtype == torch.uint8
            }
        for residual in residuals:
            residual += module(norm(residual), **how)
    return stored
