"""Blockwise local distillation (BLD): train every variant of some layers on the parent's activations.

Each variant sees the parent's own activations and is trained to add what the parent adds over the same slots; gradients
stay inside it (Puzzle, arXiv 2411.19146, section 3). The loss is the normalised squared error
MSE(parent, variant) / MSE(parent, 0) of what enters the residual, the residual itself left out.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from blocklib.activations import Activations, CachedActivations
from blocklib.block import Choice
from blocklib.errors import NotFiniteError
from blocklib.initial_weights import build
from blocklib.kind import Weights
from blocklib.kinds import is_trainable
from blocklib.lora import add_adapters, merge_adapters
from blocklib.model import PuzzleNasForCausalLM, PuzzleNasLayer
from blocklib.moments import make_moments
from blocklib.parent import Parent
from blocklib.products import gradients_of, products_of
from blocklib.stream import Rotary, Variant, delta, rotary, variant

_CURVE_POINTS = 25


@dataclass(frozen=True)
class Training:
    """How one subblock is trained. `tokens` 0 means not at all. Schedules end at zero learning rate, or never fall.

    `lora_rank` None: every weight is trained; else low-rank adapters of its matrices, merged into them at the end.
    """

    tokens: int
    learning_rate: float
    warmup: float = 0.05
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0
    lora_rank: int | None = None


@dataclass(frozen=True)
class Progress:
    """Tokens of the parent's pass done, of all this call will do."""

    done_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class HeldOutLosses:
    """Held-out normalised squared errors of the subblocks in training, after so many tokens."""

    done_tokens: int
    losses: Mapping[Choice, float]


@dataclass(frozen=True)
class Usage:
    """How the held-out tokens spread over a routed subblock's parts: experts, leaves or memory slots.

    `least` and `most` are shares of all uses; `entropy` is that of the shares over the logarithm of `parts`, 1 where
    all are used alike.
    """

    parts: int
    unused: int
    least: float
    most: float
    entropy: float


@dataclass(frozen=True)
class Distilled:
    """One finished subblock. Losses are held-out normalised squared errors; None where that step was left out.

    `weights` are those before training where training made them worse, as `loss_trained` above the others then tells.

    `usage` says how evenly its experts, leaves or slots are used; None where it has none.
    """

    choice: Choice
    weights: dict[str, Tensor]
    tokens: int
    seconds: float
    loss_first_weights: float
    loss_least_squares: float | None
    loss_trained: float | None
    curve: tuple[tuple[int, float], ...]
    usage: Usage | None = None


@dataclass(frozen=True, eq=False)
class Texts:
    """The parent's activations on three texts, of which `batch` sequences run at a time: on `calibration` for the first
    weights, on `distillation` to train, passed over as often as a training's tokens ask, and on `heldout` for the
    losses."""

    calibration: CachedActivations
    distillation: Activations
    heldout: Activations
    batch: int


def distil(
    parent: Parent,
    trainings: Mapping[Choice, Training],
    texts: Texts,
    *,
    least_squares: bool = True,
    doing: Callable[[str], None] = lambda words: None,
    heard: Callable[[float, float], None] = lambda done, total: None,
) -> Iterator[Progress | Distilled]:
    """Build and train every choice; progress as it goes, then each finished subblock.

    `heard` is told within a batch, too, how many tokens are done, of how many, and `doing` in words what is done before
    and after: each takes minutes where a parent is large. Deterministic for the same arguments. Raises NotFiniteError
    where a loss is NaN or infinite.
    """
    started = time.monotonic()
    model = parent.model
    runs: list[_SubblockTraining] = []
    before: dict[Choice, list[Variant]] = {}
    untrained: dict[Choice, dict[str, Tensor]] = {}
    doing(f"first weights of {len(trainings)} subblocks")
    for unit in build(parent, list(trainings), texts.calibration, texts.batch, least_squares):
        doing(f"first weights of {len(runs) + 1} of {len(trainings)} subblocks")
        untrained[unit.choice] = {name: tensor.contiguous() for name, tensor in unit.fitted.items()}
        layer = variant(model, unit.choice, untrained[unit.choice])
        runs.append(_SubblockTraining(unit.choice, layer, trainings[unit.choice]))
        before[unit.choice] = [variant(model, unit.choice, unit.first), layer]
    doing("losses before training")
    untrained_losses = _heldout_losses(model, before, texts)
    del before, unit

    doing("first batch")
    yield from _train(model, runs, texts, heard)

    doing("losses after training")
    trained_losses = _heldout_losses(model, {run.choice: [run.layer] for run in runs}, texts)
    seconds = (time.monotonic() - started) / max(1, len(runs))
    for run in runs:
        (first_loss, fitted_loss), (trained_loss,) = untrained_losses[run.choice], trained_losses[run.choice]
        if trained_loss > fitted_loss:
            # Too few steps, or too large ones. The weights they began from are closer to the parent.
            run.layer.load_state_dict(_copied(untrained[run.choice]), assign=True)
        yield Distilled(
            choice=run.choice,
            weights={name: tensor.detach() for name, tensor in run.layer.state_dict().items()},
            tokens=run.training.tokens,
            seconds=seconds,
            loss_first_weights=first_loss,
            loss_least_squares=fitted_loss if least_squares else None,
            loss_trained=trained_loss if run.training.tokens else None,
            curve=tuple(run.curve),
            usage=_usage(model, run, texts),
        )


def train(
    parent: Parent,
    trainings: Mapping[Choice, Training],
    weights: Mapping[Choice, Weights],
    texts: Texts,
    checks: int,
) -> Iterator[Progress | HeldOutLosses]:
    """Train every choice as `distil` does, from `weights`, named as `blocklib.stream.variant` wants them; progress as
    it goes, and held-out losses after each of `checks` + 1 equal parts of the tokens. Keeps no weights, so a caller may
    stop at any event.

    Deterministic for the same arguments; a check changes nothing. Raises NotFiniteError where a loss is NaN or
    infinite.
    """
    runs = [
        _SubblockTraining(choice, variant(parent.model, choice, dict(weights[choice])), training)
        for choice, training in trainings.items()
    ]
    total, checked = max(training.tokens for training in trainings.values()), 0
    for event in _train(parent.model, runs, texts, lambda done, total: None):
        yield event
        passed = event.done_tokens * (checks + 1) // total
        if checked < passed <= checks:
            checked = passed
            modes = [run.layer.training for run in runs]
            yield HeldOutLosses(event.done_tokens, _losses_of(parent.model, runs, texts))
            for run, mode in zip(runs, modes, strict=True):
                run.layer.train(mode)
    yield HeldOutLosses(total, _losses_of(parent.model, runs, texts))


def normalised_error(output: Tensor, target: Tensor) -> Tensor:
    """MSE(target, output) / MSE(target, 0), in float32. One number for the whole batch."""
    target32 = target.float()
    return (output.float() - target32).square().mean() / target32.square().mean().clamp_min(1e-30)


@dataclass
class _SubblockTraining:
    """One subblock in training."""

    choice: Choice
    layer: Variant
    training: Training
    done_tokens: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    _recent: list[Tensor] = field(default_factory=list)

    @property
    def is_training(self) -> bool:
        return self.done_tokens < self.training.tokens

    def rate(self) -> float:
        """The learning rate now."""
        share = self.done_tokens / self.training.tokens
        if share < self.training.warmup:
            return self.training.learning_rate * (share / self.training.warmup + 1e-3)
        left = 1 - (share - self.training.warmup) / (1 - self.training.warmup)
        falls = {"cosine": 0.5 * (1 - math.cos(math.pi * left)), "linear": left, "constant": 1.0}
        return self.training.learning_rate * falls[self.training.schedule]

    def note(self, loss: Tensor, tokens: int) -> None:
        self.done_tokens += tokens
        self._recent.append(loss.detach())
        due = len(self.curve) * self.training.tokens / _CURVE_POINTS
        if self.done_tokens >= due or not self.is_training:
            mean = float(torch.stack(self._recent).mean())
            if not math.isfinite(mean):
                raise NotFiniteError(
                    f"{self.choice}: the distillation loss is {mean} after {self.done_tokens} tokens; "
                    "lower distill.learning_rate, or look for NaN in the parent's activations"
                )
            self.curve.append((self.done_tokens, mean))
            self._recent.clear()


def _train(
    model: PuzzleNasForCausalLM,
    runs: Sequence[_SubblockTraining],
    texts: Texts,
    heard: Callable[[float, float], None],
) -> Iterator[Progress]:
    active = [run for run in runs if run.is_training and is_trainable(run.choice)]
    if not active:
        return
    optimizers = {run.choice: _begun(run) for run in active}
    total = max(run.training.tokens for run in active)
    done, batches = 0, _batches(len(texts.distillation.ids_BT), texts.batch)
    while any(run.is_training for run in active):
        training = {run.choice: run for run in active if run.is_training}
        rows = next(batches)
        tokens = len(rows) * texts.distillation.ids_BT.shape[1]
        for trained_here, (choice, entering, target, tables) in enumerate(
            _targets(model, list(training), texts.distillation, rows)
        ):
            heard(min(done + tokens * trained_here / len(training), total), total)
            run, optimizer = training[choice], optimizers[choice]
            loss = normalised_error(delta(run.layer, entering, tables), target)
            with gradients_of(products_of(model)):
                (loss + regulariser(run.layer)).backward()
            torch.nn.utils.clip_grad_norm_(trained(run.layer), 1.0)
            optimizer.param_groups[0]["lr"] = run.rate()
            optimizer.step()
            # Gradients of one subblock at a time are there.
            optimizer.zero_grad(set_to_none=True)
            run.note(loss, tokens)
        done += tokens
        yield Progress(min(done, total), total)
    for run in active:
        if run.training.lora_rank is not None:
            merge_adapters(run.layer)
        run.layer.requires_grad_(False)
        run.layer.eval()


def _begun(run: _SubblockTraining) -> torch.optim.Optimizer:
    """Its optimiser. The weights it begins with are kept, for when it ends worse."""
    run.layer.load_state_dict(_copied(run.layer.state_dict()), assign=True)
    run.layer.train()
    if run.training.lora_rank is None:
        run.layer.requires_grad_(True)
    else:
        add_adapters(run.layer, run.training.lora_rank)
    optimizer = torch.optim.AdamW(
        trained(run.layer), weight_decay=run.training.weight_decay, betas=(0.9, 0.95), fused=True
    )
    make_moments(optimizer)
    return optimizer


def regulariser(model: nn.Module) -> Tensor | float:
    """The terms that the modules inside add to the loss of their latest pass in training; 0 if none does."""
    terms = [getattr(module, "regulariser", None) for module in model.modules()]
    return sum((term for term in terms if term is not None), 0.0)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that want gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _targets(
    model: PuzzleNasForCausalLM, choices: Sequence[Choice], activations: Activations, rows: Tensor
) -> Iterator[tuple[Choice, Tensor, Tensor, Rotary]]:
    """Each choice with what enters its slots and what the parent adds over them, in the sequences `rows`."""
    pending = sorted(choices, key=lambda choice: choice.first_slot + choice.span)
    end = pending[-1].first_slot + pending[-1].span
    entering: dict[int, Tensor] = {}
    added: dict[int, Tensor] = {}
    tables: Rotary | None = None
    passes = activations.over(rows, end, min(choice.first_slot for choice in pending))
    while pending:
        with torch.no_grad():
            here = next(passes)
            tables = tables or rotary(model, here.entering_BTD)
        entering[here.slot], added[here.slot] = here.entering_BTD, here.delta_BTD
        while pending and pending[0].first_slot + pending[0].span == here.slot + 1:
            choice = pending.pop(0)
            target = added[here.slot]
            for slot in range(choice.first_slot, here.slot):
                target = target + added[slot]
            yield choice, entering[choice.first_slot], target, tables
        oldest = min((choice.first_slot for choice in pending), default=end)
        entering = {slot: value for slot, value in entering.items() if slot >= oldest}
        added = {slot: value for slot, value in added.items() if slot >= oldest}


def _losses_of(model: PuzzleNasForCausalLM, runs: Sequence[_SubblockTraining], texts: Texts) -> dict[Choice, float]:
    for run in runs:
        run.layer.eval()
    losses = _heldout_losses(model, {run.choice: [run.layer] for run in runs}, texts)
    return {choice: loss for choice, (loss,) in losses.items()}


@torch.no_grad()
def _heldout_losses(
    model: PuzzleNasForCausalLM, layers: Mapping[Choice, Sequence[Variant]], texts: Texts
) -> dict[Choice, list[float]]:
    """Held-out normalised squared error of each layer of each choice: the mean over batches. Raises NotFiniteError."""
    sums = {choice: [0.0] * len(some) for choice, some in layers.items()}
    batches = torch.arange(len(texts.heldout.ids_BT)).split(texts.batch)
    for rows in batches:
        for choice, entering, target, tables in _targets(model, list(layers), texts.heldout, rows):
            for place, layer in enumerate(layers[choice]):
                sums[choice][place] += float(normalised_error(delta(layer, entering, tables), target))
    for choice, totals in sums.items():
        for total in totals:
            if not math.isfinite(total):
                raise NotFiniteError(
                    f"{choice}: its held-out distillation loss is {total}; the parent's activations may hold NaN"
                )
    return {choice: [total / len(batches) for total in totals] for choice, totals in sums.items()}


@torch.no_grad()
def _usage(model: PuzzleNasForCausalLM, run: "_SubblockTraining", texts: Texts) -> Usage | None:
    layer = run.layer
    assert isinstance(layer, PuzzleNasLayer), "blocks in parallel are not trained as one"
    count: Callable[[Tensor], Tensor] | None = getattr(layer.mlp, "usage", None)
    if count is None:
        return None
    counts = torch.zeros(0)
    for rows in torch.arange(len(texts.heldout.ids_BT)).split(texts.batch):
        for _, entering, _, _ in _targets(model, [run.choice], texts.heldout, rows):
            found = count(layer.ffn_input(entering).flatten(0, 1)).double()
            counts = counts + found if len(counts) else found
    shares = counts / counts.sum()
    entropy = float(torch.special.entr(shares).sum()) / math.log(len(shares)) if len(shares) > 1 else 1.0
    return Usage(len(shares), int((counts == 0).sum()), float(shares.min()), float(shares.max()), entropy)


def _batches(sequences: int, batch: int) -> Iterator[Tensor]:
    """The places of each batch's sequences in the text, for ever, each pass over it in another, fixed order."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(sequences, generator=generator)
        for rows in order.split(batch):
            if len(rows) == batch or sequences < batch:
                yield rows


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}
