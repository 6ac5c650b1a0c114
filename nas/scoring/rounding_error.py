"""Scores of rounded weights, predicted from what rounding does where it is done.

For small errors the KL grows with their square, and the errors of rounding point every way alike. So at one slot it
grows as the mean square of the error that rounding makes in the slot's output: one measured score there, of a coarse
precision, says the factor. Whatever reads the residual norms it first, so an error counts as a share of the residual at
its token: a few tokens have a residual a hundred times as large as all others (Sun et al., arXiv 2402.17762), and their
errors would drown the rest.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import torch
from torch import Tensor

from blocklib.block import Choice
from blocklib.kind import Weights
from blocklib.parent import Parent
from blocklib.stream import delta, embed, rotary, slot_delta, variant
from nas.scoring.fidelity import Fidelity


@torch.no_grad()
def rounding_errors(
    parent: Parent, choices: Iterable[Choice], weights: Callable[[Choice], Weights], ids_BT: Tensor
) -> Iterator[tuple[Choice, float]]:
    """For each attention or FFN choice, the mean over tokens of the square of what rounding changes in its output, as a
    share of that of the residual after it, on the parent's own activations; `ids_BT` are token ids, [sequences,
    tokens]. `weights` gives the tensors of a choice, rounded as it says or not; it is asked when the slot has come."""
    pending = sorted(choices, key=lambda choice: (choice.first_slot, str(choice.unrounded)))
    residual = embed(parent.model, ids_BT)
    tables = rotary(parent.model, residual)
    for slot in range(1 + max((choice.first_slot for choice in pending), default=-1)):
        here = [choice for choice in pending if choice.first_slot == slot]
        for unrounded, alike in groupby(here, key=lambda choice: choice.unrounded):
            before = delta(variant(parent.model, unrounded, weights(unrounded)), residual, tables)
            whole_BT = (residual + before).square().sum(-1).clamp_min(1e-30)
            for choice in alike:
                after = delta(variant(parent.model, choice, weights(choice)), residual, tables)
                yield choice, float(((after - before).square().sum(-1) / whole_BT).mean())
        residual = residual + slot_delta(parent.model, slot, residual, tables)


def predicted(shape: Fidelity, anchor: Fidelity, ratio: float) -> Fidelity:
    """The score of a rounded subblock: that of its shape, and that of the `anchor`, the slot's own subblock rounded
    coarsely, times the `ratio` of the mean squares of their errors."""
    return Fidelity(
        kl=shape.kl + ratio * anchor.kl,
        lm_loss=shape.lm_loss + ratio * anchor.lm_loss,
        top1_agreement=max(0.0, shape.top1_agreement - ratio**0.5 * (1 - anchor.top1_agreement)),
        hidden_cosine=shape.hidden_cosine - ratio * (1 - anchor.hidden_cosine),
    )


OWN = Fidelity(kl=0.0, lm_loss=0.0, top1_agreement=1.0, hidden_cosine=1.0)
"""That of the parent's own shape."""
