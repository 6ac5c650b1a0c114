"""A whole child rounded to the precisions of its architecture, layer by layer on its own stream.

Each matrix is rounded on the inputs that it has behind the rounded layers before it (as in GPTQ, arXiv 2210.17323,
section 4), so a layer knows what those before it did.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blocklib.assemble import MODULES
from blocklib.block import SKIP, Architecture, Choice
from blocklib.errors import NotFiniteError
from blocklib.model import PuzzleNasForCausalLM, PuzzleNasLayer
from blocklib.parent import child_config, computing, in_type, model_with, own_shape
from blocklib.precisions.formats import MatrixType
from blocklib.precisions.layer_checkpoints import LayerCheckpoints
from blocklib.precisions.layer_moments import LayerMoments
from blocklib.precisions.moments import MomentMeter
from blocklib.precisions.parts import as_floats, matrix_types, round_part
from blocklib.precisions.round_library import table_moments
from blocklib.precisions.rounding import How, unpacked
from blocklib.precisions.train_layer import Batch, LayerTraining, train_layer
from blocklib.shape import Shape
from blocklib.stream import Rotary, delta, embed, rotary
from blocklib.tables import EMBEDDING, HEAD, table_names

Stored = dict[str, Tensor]
"""Matrices as they lie in a file, uint8 [outputs, bytes of a row], by their names in the model."""
_TABLES: How = "feedback"
"""A vocabulary has more rows than all of a layer, and refitting takes as long again for an error little smaller."""


@dataclass(frozen=True, eq=False)
class RoundingText:
    """Token ids to round on, [sequences, tokens], of which `batch` sequences run at a time. `training`: each layer is
    trained through its rounding, too."""

    calibration_BT: Tensor
    batch: int
    training: LayerTraining | None = None


@torch.no_grad()
def round_model(
    child: PuzzleNasForCausalLM,
    architecture: Architecture,
    text: RoundingText,
    how: How = "refit",
    heard: Callable[[int, int], None] = lambda done, total: None,
    checkpoints: LayerCheckpoints | None = None,
) -> tuple[PuzzleNasForCausalLM, Stored]:
    """The child of that architecture, whose shapes are the child's own, with the weights that its precisions leave of
    the child's, in float32; and the rounded matrices. The child itself is not changed.

    `heard` is told how many layers are done, of how many. Each layer that is done goes to `checkpoints`, and those that
    are there already are used: the child, the text and `how` must be the same as then. Raises NotFiniteError, naming
    tensor, row and block.
    """
    assert str(architecture.unrounded) == str(Architecture.parse(child.config.architecture).unrounded)
    shape, running = own_shape(child.config), computing(child)
    batches = text.calibration_BT.split(text.batch)
    stored = _round_tables(running, architecture, batches, _TABLES if how == "refit" else how)
    weights = in_type(child, torch.float32, copy=True).state_dict()
    for part in architecture.table_choices():
        names = table_names(part.role, shape.tied)
        weights |= as_floats(part, {name: stored[name] for name in names}, shape)
        if part.role == "tables" and shape.tied:
            weights[HEAD] = weights[EMBEDDING]
    config = child_config(child.config, architecture, shape)
    rounded = model_with(config, weights)
    calibrating = [embed(rounded, ids) for ids in batches]
    to_train = () if text.training is None else text.training.batches
    unrounded_text, rounded_text = ([embed(model, ids) for ids in to_train] for model in (running, rounded))
    tables = rotary(rounded, calibrating[0])
    placed = list(architecture.placed())
    for index, ((start, block), layer) in enumerate(zip(placed, rounded.model.layers, strict=True)):
        parts = [part for part in Choice(start, "block", block).parts if part.what != SKIP]
        unrounded_text = _through(running.model.layers[index], unrounded_text, tables)
        types = {name: type for part in parts if part.precision for name, type in matrix_types(part, shape).items()}
        done = None if checkpoints is None else checkpoints.load(index, rounded.device)
        leaving: list[Tensor] | None = None
        if done is not None:
            others, found = done
            layer.load_state_dict(others | _unpacked(found, types), assign=True)
        else:
            found, leaving = _round_layer(layer, parts, calibrating, tables, (shape, how))
            if found and text.training is not None:
                leaving = None  # It is another once the layer is trained, and training needs the memory.
                both = [Batch(*each) for each in zip(rounded_text, unrounded_text, strict=True)]
                try:
                    found = train_layer(layer, found, types, both, tables, text.training.learning_rate)
                except NotFiniteError as error:
                    raise NotFiniteError(f"layer {index} of the child: {error}") from error
            if found and checkpoints is not None:
                checkpoints.save(index, layer.state_dict(), found)
        calibrating = _through(layer, calibrating, tables) if leaving is None else leaving
        rounded_text = _through(layer, rounded_text, tables)
        stored |= {f"model.layers.{index}.{name}": tensor for name, tensor in found.items()}
        heard(index + 1, len(placed))
    return rounded, stored


def _unpacked(stored: Stored, types: Mapping[str, MatrixType]) -> Stored:
    return {name: unpacked(packed_OB, types[name]) for name, packed_OB in stored.items()}


def _round_tables(
    child: PuzzleNasForCausalLM, architecture: Architecture, batches: Sequence[Tensor], how: How
) -> Stored:
    """Embedding and head, those that have a precision, on what enters the head of the child before any is rounded."""
    shape, stored = own_shape(child.config), Stored()
    if not architecture.tables:
        return stored
    meter = MomentMeter()
    for ids in batches:
        meter.add(child.model(ids.long(), use_cache=False).last_hidden_state)
    moments_II = meter.moments_II()
    tables = {EMBEDDING: child.model.embed_tokens.weight, HEAD: child.lm_head.weight}
    for part in architecture.table_choices():
        own = {name: tables[name].float() for name in table_names(part.role, shape.tied)}
        stored |= round_part(part, own, table_moments(moments_II, part.role, shape), shape, how)
    return stored


def _through(layer: PuzzleNasLayer, residuals: Sequence[Tensor], tables: Rotary) -> list[Tensor]:
    return [residual + delta(layer, residual, tables) for residual in residuals]


def _round_layer(
    layer: PuzzleNasLayer,
    parts: Sequence[Choice],
    entering: Sequence[Tensor],
    tables: Rotary,
    setting: tuple[Shape, How],
) -> tuple[Stored, list[Tensor]]:
    """Round a layer where it stands. Returns its rounded matrices, by their names in it, and the residuals that leave
    it."""
    stored: Stored = {}
    residuals = list(entering)
    for part in parts:
        # No format of precisions carries norms behind a subblock.
        norm, module = (layer.get_submodule(name) for name in MODULES[part.role][:2])
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
            stored |= {name: tensor for name, tensor in found.items() if tensor.dtype == torch.uint8}
        residuals = [residual + module(norm(residual), **how) for residual in residuals]
    return stored, residuals
