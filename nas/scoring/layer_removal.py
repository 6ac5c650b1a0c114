"""The parent's loss with whole layers not run: what SLEB (arXiv 2402.09025, section 3) asks for each candidate.

A candidate's layer is not run at all, so that what is measured is the reduced model. Candidates share the parent's
residual up to their own layer; past it each runs alone, and only that one shared residual is kept.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from blocklib.compute_dtype import converted_once
from blocklib.errors import NotFiniteError
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent
from blocklib.stream import Rotary, embed, rotary, slot_delta
from nas.scoring.fidelity import logit_rows, numbers_at_once


@torch.no_grad()
def loss_without(
    parent: Parent,
    ids_BT: Tensor,
    removed: Collection[int],
    candidates: Sequence[int],
    batch: int | None = None,
    heard: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """For each candidate layer, in their order, the loss of the parent without it and without the `removed` layers.

    The loss is the mean next-token cross-entropy in nats over all of `ids_BT` ([sequences, tokens], token ids), from
    float32 logits whatever the parent runs in. Layers count from 0. `batch` is how many sequences run together; None:
    as many as the device takes well. `heard` is told how many tokens have gone through reduced models, of how many.
    Raises NotFiniteError, naming layers and sequences, where a loss is NaN or infinite, and ValueError where there is
    no next token, or a layer is not the parent's, stands twice or is removed already.
    """
    _check(parent, ids_BT, removed, candidates)
    one = ids_BT.shape[1] * parent.shape.hidden
    batch = batch or max(1, numbers_at_once(ids_BT.device) // one)
    alive = [layer for layer in range(parent.shape.layers) if layer not in removed]
    sums = dict.fromkeys(candidates, 0.0)
    done, total = 0, len(candidates) * ids_BT.numel()
    for first, ids in zip(range(0, len(ids_BT), batch), ids_BT.split(batch), strict=True):
        for layer, loss in _round(parent.model, ids, alive, candidates):
            if not math.isfinite(loss):
                others = f" and, before it, {', '.join(map(str, removed))}" if removed else ""
                where = f"sequences {first}..{first + len(ids) - 1}"
                raise NotFiniteError(f"without layer {layer}{others} the loss is {loss} ({where})")
            sums[layer] += loss
            done += ids.numel()
            heard(done, total)
    targets = len(ids_BT) * (ids_BT.shape[1] - 1)
    return [sums[layer] / targets for layer in candidates]


def _check(parent: Parent, ids_BT: Tensor, removed: Collection[int], candidates: Sequence[int]) -> None:
    if ids_BT.ndim != 2 or len(ids_BT) == 0 or ids_BT.shape[1] < 2:
        raise ValueError(f"token ids of shape {list(ids_BT.shape)} hold no next token; give [sequences, 2 or more]")
    asked = [*removed, *candidates]
    for layer in asked:
        if not 0 <= layer < parent.shape.layers:
            raise ValueError(f"layer {layer} is not among the parent's layers 0..{parent.shape.layers - 1}")
        if asked.count(layer) > 1:
            raise ValueError(f"layer {layer} is asked to go twice")


def _round(
    model: PuzzleNasForCausalLM, ids_BT: Tensor, alive: Sequence[int], candidates: Collection[int]
) -> Iterator[tuple[int, float]]:
    """Each candidate with its summed loss over one batch."""
    left = len(candidates)
    shared_BTD = embed(model, ids_BT)
    tables = rotary(model, shared_BTD)
    for place, layer in enumerate(alive):
        if layer in candidates:
            residual_BTD = shared_BTD
            for later in alive[place + 1 :]:
                residual_BTD = _through(model, later, residual_BTD, tables)
            yield layer, _summed_loss(model, residual_BTD, ids_BT)
            left -= 1
        if left == 0:
            return
        shared_BTD = _through(model, layer, shared_BTD, tables)


def _through(model: PuzzleNasForCausalLM, layer: int, residual_BTD: Tensor, tables: Rotary) -> Tensor:
    """The residual after one of the model's layers."""
    for slot in (2 * layer, 2 * layer + 1):
        residual_BTD = residual_BTD + slot_delta(model, slot, residual_BTD, tables)
    return residual_BTD


def _summed_loss(model: PuzzleNasForCausalLM, residual_BTD: Tensor, ids_BT: Tensor) -> float:
    """Next-token cross-entropy summed over a batch, from the residual after its last layer; a few rows at a time."""
    targets_R = ids_BT[:, 1:].flatten().long()
    final_RD = model.model.norm(residual_BTD)[:, :-1].flatten(0, 1)
    # A row of logits is long, and a head is slow on a few rows.
    rows = logit_rows(final_RD.device, model.lm_head.out_features)
    total = 0.0
    with converted_once():
        for targets, final in zip(targets_R.split(rows), final_RD.split(rows), strict=True):
            losses_R = functional.cross_entropy(model.lm_head(final).float(), targets, reduction="none")
            total += float(losses_R.double().sum())
    return total
