"""First weights and their least-squares fit, for many subblocks from one pass of the parent over calibration tokens.

No gradients: channels are picked by their contribution, then each subblock's output projection is solved for so that
its output comes closest to what the parent adds over the same slots (ridge regression, accumulated in float64).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blocklib.block import Choice
from blocklib.compute_dtype import converted_once
from blocklib.errors import SettingError
from blocklib.importance import ContributionMeter
from blocklib.kind import ParentLayer
from blocklib.kinds import first_weights, kind_of
from blocklib.parent import Parent
from blocklib.stream import Rotary, Variant, delta, embed, inputs_of, rotary, slot_delta, variant

_RIDGES = (1e-4, 1e-2, 1.0)


@dataclass(frozen=True)
class Built:
    """A subblock's weights before training: as taken from the parent, and after the fit (the same where none is)."""

    choice: Choice
    first: dict[str, Tensor]
    fitted: dict[str, Tensor]


@torch.no_grad()
def build(parent: Parent, choices: Sequence[Choice], calibration_BT: Tensor, batch: int, fit: bool) -> Iterator[Built]:
    """Each choice once the parent's pass has come to its end. Choices are attention or ffn ones, none the parent's own.

    `calibration_BT` holds token ids, [sequences, tokens]; at most `batch` sequences run at a time. Memory holds the
    residual at the slots some unfinished choice still needs, no more. Raises SettingError where there is too little
    text to fit on one part and check on another.
    """
    if fit and len(calibration_BT) < 2:
        raise SettingError(
            "the least-squares fit needs at least two calibration sequences, one of them to check it on; "
            "raise data.calibration_tokens"
        )
    batch = min(batch, max(1, len(calibration_BT) // 4))
    assert all(choice.role != "block" for choice in choices)
    model, shape = parent.model, parent.shape
    pending = sorted(choices, key=lambda choice: choice.first_slot + choice.span)
    residuals = [embed(model, ids) for ids in calibration_BT.split(batch)]
    tables = rotary(model, residuals[0])
    entering: dict[int, list[Tensor]] = {}
    seen: dict[int, ParentLayer] = {}
    for slot in range(2 * shape.layers):
        entering[slot] = residuals
        mlp = model.model.layers[slot // 2].mlp
        meter = ContributionMeter(mlp.down_proj.weight) if slot % 2 else None
        with converted_once(), inputs_of(mlp) as ffn_inputs, inputs_of(mlp.down_proj) as hidden:
            added = []
            for residual in residuals:
                added.append(slot_delta(model, slot, residual, tables))
                if meter is not None:
                    meter.add(hidden.pop())
        weights = parent.layer_weights(slot // 2)
        # An attention is finished before its layer's FFN has run, and needs nothing of it.
        seen[slot // 2] = ParentLayer(weights, torch.empty(0), torch.empty(0))
        if meter is not None:
            ffn_input_ND = torch.cat([each.flatten(0, 1) for each in ffn_inputs])
            seen[slot // 2] = ParentLayer(weights, meter.contribution_F(), ffn_input_ND)
        residuals = [residual + increment for residual, increment in zip(residuals, added, strict=True)]
        while pending and pending[0].first_slot + pending[0].span == slot + 1:
            choice = pending.pop(0)
            layers = [seen[layer] for layer in range(choice.layer, choice.end_layer)]
            first = first_weights(choice, layers, shape)
            fitted = first
            if fit:
                targets = [after - before for after, before in zip(residuals, entering[choice.first_slot], strict=True)]
                fitted = fit_output(parent, choice, first, entering[choice.first_slot], targets, tables)
            yield Built(choice, first, fitted)
        if not pending:
            return
        oldest = min(choice.first_slot for choice in pending)
        entering = {kept: value for kept, value in entering.items() if kept >= oldest}
        seen = {layer: value for layer, value in seen.items() if layer >= oldest // 2}


def fit_output(
    parent: Parent,
    choice: Choice,
    weights: dict[str, Tensor],
    entering: Sequence[Tensor],
    targets: Sequence[Tensor],
    tables: Rotary,
) -> dict[str, Tensor]:
    """`weights` with the output projection moved to where the subblock's output is closest to the targets.

    Minimises ||Z dW - R||^2 + ridge ||dW||^2, Z [N, M] being the projection's inputs and R [N, D] what the subblock
    still misses. The ridge, relative to the mean square of Z, is the one of a few that does best on the last quarter of
    the tokens when fitted on the others; where none helps there, the weights are returned as they came. So are those of
    a projection with a norm behind it, where what is added is no linear function of it.
    """
    name = kind_of(*choice.subblocks[0]).output_projection
    if name is None or parent.shape.norms_after:
        return weights
    layer = variant(parent.model, choice, weights)
    fitting, checking = _Normal(), _Normal()
    last_quarter = len(entering) - max(1, len(entering) // 4)
    for index, (residual, target) in enumerate(zip(entering, targets, strict=True)):
        part = checking if index >= last_quarter else fitting
        part.add(layer, name, residual, target, tables)
    best = min(_RIDGES, key=lambda ridge: checking.error(fitting.solve(ridge)))
    if not checking.error(fitting.solve(best)) < 0:
        return weights
    change_MD = (fitting + checking).solve(best) / parent.config.residual_multiplier
    projection = weights[f"{name}.weight"]
    change = change_MD.T if isinstance(layer.get_submodule(name), nn.Linear) else change_MD
    return weights | {f"{name}.weight": (projection.double() + change).to(projection.dtype)}


class _Normal:
    """The normal equations of one regression: Z'Z and Z'R, summed in float64 over batches."""

    def __init__(self) -> None:
        self.tokens = 0
        self.gram_MM = torch.zeros(0)
        self.cross_MD = torch.zeros(0)

    def add(self, layer: Variant, name: str, residual: Tensor, target: Tensor, tables: Rotary) -> None:
        with inputs_of(layer.get_submodule(name)) as seen:
            output = delta(layer, residual, tables)
        features_NM = seen[0].flatten(0, -2).float()
        missing_ND = (target - output).flatten(0, 1).float()
        gram, cross = (features_NM.T @ features_NM).double(), (features_NM.T @ missing_ND).double()
        self.gram_MM = gram if self.tokens == 0 else self.gram_MM + gram
        self.cross_MD = cross if self.tokens == 0 else self.cross_MD + cross
        self.tokens += len(features_NM)

    def __add__(self, other: "_Normal") -> "_Normal":
        both = _Normal()
        both.tokens = self.tokens + other.tokens
        both.gram_MM, both.cross_MD = self.gram_MM + other.gram_MM, self.cross_MD + other.cross_MD
        return both

    def solve(self, ridge: float) -> Tensor:
        """The change of the projection, [M, D]."""
        scale = self.gram_MM.diagonal().mean().clamp_min(1e-30)
        damped = self.gram_MM + ridge * scale * torch.eye(
            len(self.gram_MM), dtype=torch.float64, device=self.gram_MM.device
        )
        change_MD: Tensor = torch.linalg.solve(damped, self.cross_MD)
        return change_MD

    def error(self, change_MD: Tensor) -> float:
        """Squared error of a change on these tokens, less that of no change: negative where it helps."""
        fitted = (change_MD * (self.gram_MM @ change_MD)).sum() - 2 * (change_MD * self.cross_MD).sum()
        return float(fitted)
