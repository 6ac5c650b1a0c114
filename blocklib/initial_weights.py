"""First weights and their least-squares fit, for many subblocks from the parent's activations on calibration tokens.

No gradients: channels are picked by their contribution, then each subblock's output projection is solved for so that
its output comes closest to what the parent adds over the same slots (ridge regression, accumulated in float64).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blocklib.activations import CachedActivations
from blocklib.block import Choice
from blocklib.errors import SettingError
from blocklib.importance import contribution
from blocklib.kind import ParentLayer
from blocklib.kinds import first_weights, kind_of
from blocklib.parent import Parent
from blocklib.stream import Rotary, Variant, delta, inputs_of, rotary, variant

_RIDGES = (1e-4, 1e-2, 1.0)


@dataclass(frozen=True)
class Built:
    """A subblock's weights before training: as taken from the parent, and after the fit (the same where none is)."""

    choice: Choice
    first: dict[str, Tensor]
    fitted: dict[str, Tensor]


@torch.no_grad()
def build(
    parent: Parent, choices: Sequence[Choice], calibration: CachedActivations, batch: int, fit: bool
) -> Iterator[Built]:
    """Each choice in order of its last slot. Choices are attention or ffn ones, none the parent's own.

    `calibration` holds the parent's activations, of which at most `batch` sequences are in memory at a time. Raises
    SettingError where there is too little text to fit on one part and check on another.
    """
    sequences = len(calibration.ids_BT)
    if fit and sequences < 2:
        raise SettingError(
            "the least-squares fit needs at least two calibration sequences, one of them to check it on; "
            "raise data.calibration_tokens"
        )
    assert all(choice.role != "block" for choice in choices)
    batches = torch.arange(sequences).split(min(batch, max(1, sequences // 4)))
    seen: dict[tuple[int, bool], ParentLayer] = {}
    for choice in sorted(choices, key=lambda choice: choice.first_slot + choice.span):
        seen = {known: value for known, value in seen.items() if known[0] >= choice.layer}
        wanted = [(layer, choice.role == "ffn") for layer in range(choice.layer, choice.end_layer)]
        for layer, with_ffn in wanted:
            if (layer, with_ffn) not in seen:
                seen[layer, with_ffn] = _parent_layer(parent, layer, with_ffn, calibration, batches)
        first = first_weights(choice, [seen[each] for each in wanted], parent.shape)
        fitted = first
        if fit:
            passes = (_pass_over(choice, calibration, rows) for rows in batches)
            fitted = fit_output(parent, choice, first, passes, len(batches))
        yield Built(choice, first, fitted)


def _parent_layer(
    parent: Parent, layer: int, with_ffn: bool, calibration: CachedActivations, batches: Sequence[Tensor]
) -> ParentLayer:
    """A layer of the parent, with what its FFN reads and what each of its channels adds. An attention needs neither."""
    if not with_ffn:
        return ParentLayer(parent.layer_weights(layer), torch.empty(0), torch.empty(0))
    own, slot = parent.model.model.layers[layer], 2 * layer + 1
    down_DF = own.mlp.down_proj.weight
    sizes_BF = calibration.channel_sizes(layer, down_DF.shape[1])
    read = [own.ffn_input(next(calibration.over(rows, slot + 1, slot)).entering_BTD).flatten(0, 1) for rows in batches]
    channels_F = contribution(sizes_BF, calibration.ids_BT.numel(), down_DF)
    return ParentLayer(parent.layer_weights(layer), channels_F, torch.cat(read))


def _pass_over(choice: Choice, calibration: CachedActivations, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The residual that enters a choice's slots, and the change that the parent makes over them."""
    before: Tensor | None = None
    for here in calibration.over(rows, choice.first_slot + choice.span, choice.first_slot):
        before = here.entering_BTD if before is None else before
    assert before is not None, choice
    return before, here.entering_BTD + here.delta_BTD - before


@torch.no_grad()
def fit_output(
    parent: Parent,
    choice: Choice,
    weights: dict[str, Tensor],
    passes: Iterable[tuple[Tensor, Tensor]],
    batches: int,
) -> dict[str, Tensor]:
    """`weights` with the output projection moved to where the subblock's output is closest to the targets. `passes` has
    what enters its slots and its target, [B, T, D], for each of so many batches.

    Minimises ||Z dW - R||^2 + ridge ||dW||^2, Z [N, M] being the projection's inputs and R [N, D] what the subblock
    still misses. The ridge, relative to the mean square of Z, is the one of a few that does best on the last quarter of
    the tokens when fitted on the others; where none helps there, the weights are returned as they came. So are those of
    a projection with a norm behind it, where what is added is no linear function of it.
    """
    name = kind_of(*choice.subblocks[0]).output_projection
    if name is None or parent.shape.norms_output:
        return weights
    layer = variant(parent.model, choice, weights)
    fitting, checking = _Normal(), _Normal()
    last_quarter = batches - max(1, batches // 4)
    for index, (residual, target) in enumerate(passes):
        part = checking if index >= last_quarter else fitting
        part.add(layer, name, residual, target, rotary(parent.model, residual))
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
