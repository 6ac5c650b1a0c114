"""A rounded layer trained through its rounding, so that it adds what brings the rounded stream to the unrounded one.

It reads what the rounded layers before it make, and is trained towards what the same layers make unrounded, so it also
makes up for their errors (OmniQuant, arXiv 2308.13137, section 3.1). Here the numbers themselves move, by the
straight-through estimator (`straight_through.py`), on the scales that rounding chose.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blocklib.distil import normalised_error
from blocklib.errors import NotFiniteError, SettingError
from blocklib.model import PuzzleNasLayer
from blocklib.precisions.formats import MatrixType
from blocklib.precisions.train_rounded import hold_matrices, settle_matrices
from blocklib.stream import Rotary, delta

_WARMUP, _HELD_OUT = 0.05, 8
"""A share of the steps; and one of so many batches is not trained on, but says whether training helped."""


@dataclass(frozen=True, eq=False)
class LayerTraining:
    """Token ids to train each layer on, [sequences, tokens], once, `batch` sequences a step. The last of them are held
    out. Raises SettingError where there are fewer than two batches."""

    text_BT: Tensor
    batch: int
    learning_rate: float

    def __post_init__(self) -> None:
        if len(self.batches) < 2:
            raise SettingError(
                f"{len(self.text_BT)} sequences are too few to train layers on, {self.batch} at a time; two "
                "batches are the least"
            )

    @property
    def batches(self) -> tuple[Tensor, ...]:
        return tuple(self.text_BT.split(self.batch))


@dataclass(frozen=True, eq=False)
class Batch:
    """What enters a layer of the rounded child, and what leaves that layer before rounding, in the unrounded child;
    [sequences, tokens, D]."""

    rounded_BTD: Tensor
    leaving_BTD: Tensor


def train_layer(
    layer: PuzzleNasLayer,
    stored: Mapping[str, Tensor],
    types: Mapping[str, MatrixType],
    batches: Sequence[Batch],
    tables: Rotary,
    learning_rate: float,
) -> dict[str, Tensor]:
    """The matrices of a layer, `stored` as they lie in a file, by the names of their weights in it, after training on
    each batch once. The layer holds the same numbers; its norms and biases are trained, and K-quants stay. Where that
    brings the batches held out no nearer, all stays as it was.

    Raises NotFiniteError where a weight or a loss is NaN or infinite.
    """
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    first_held_out = len(batches) - max(1, len(batches) // _HELD_OUT)
    for_training, held_out = batches[:first_held_out], batches[first_held_out:]
    loss_before = _loss(layer, held_out, tables)
    if not math.isfinite(loss_before):
        raise NotFiniteError(f"the loss is {loss_before} once it is rounded, before any training")
    fixed = hold_matrices(layer, stored, types)
    layer.requires_grad_(True)
    for name in fixed:
        layer.get_parameter(name).requires_grad_(False)
    try:
        _train(layer, for_training, tables, learning_rate)
        layer.requires_grad_(False)
        found = settle_matrices(layer, stored)
    except NotFiniteError as error:
        raise NotFiniteError(f"training through rounding: {error}; lower round.learning_rate") from error
    loss_after = _loss(layer, held_out, tables)
    if not math.isfinite(loss_after):
        raise NotFiniteError(f"training through rounding: the loss is {loss_after}; lower round.learning_rate")
    if loss_after < loss_before:
        return found
    layer.load_state_dict(before, assign=True)
    return dict(stored)


def _train(layer: PuzzleNasLayer, batches: Sequence[Batch], tables: Rotary, learning_rate: float) -> None:
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    warmup = max(1, round(_WARMUP * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / len(batches))),
    )
    for batch in batches:
        with torch.enable_grad():
            _error(layer, batch, tables).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)


def _error(layer: PuzzleNasLayer, batch: Batch, tables: Rotary) -> Tensor:
    return normalised_error(delta(layer, batch.rounded_BTD, tables), batch.leaving_BTD - batch.rounded_BTD)


@torch.no_grad()
def _loss(layer: PuzzleNasLayer, batches: Sequence[Batch], tables: Rotary) -> float:
    return sum(float(_error(layer, batch, tables)) for batch in batches) / len(batches)
