"""Scores of types of keys and values: how far the parent's output moves when it reads them as they were stored.

One pass of the parent as it is serves all types.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blocklib.parent import Parent
from blocklib.precisions.keys_and_values import KeptType, kept_in
from nas.scoring.fidelity import Fidelity, FidelityMeter

_PARENT = "parent"


@torch.no_grad()
def score_kv_caches(
    parent: Parent,
    names: Sequence[str],
    ids_BT: Tensor,
    batch: int = 8,
    heard: Callable[[float, float], None] = lambda done, total: None,
) -> dict[str, Fidelity]:
    """The fidelity of the parent with keys and values in each type, `lm_loss` being the rise over the parent's own.

    `names` are llama.cpp's; `ids_BT` the tokens, [sequences, tokens]. Raises NotFiniteError.
    """
    model, done = parent.model, 0
    types = [KeptType.of(replace(parent.architecture, cache=name), model.config) for name in names]
    meter = FidelityMeter([_PARENT, *names], model.lm_head)
    for ids in ids_BT.split(batch):
        parent_BTD = model.model(ids.long(), use_cache=False).last_hidden_state
        meter.add(ids, parent_BTD, [parent_BTD], [0])
        for place, kept in enumerate(types, 1):
            with kept_in(kept):
                kept_BTD = model.model(ids.long(), use_cache=False).last_hidden_state
            meter.add(ids, parent_BTD, [kept_BTD], [place])
        done += ids.numel()
        heard(done, ids_BT.numel())
    found = meter.result()
    base = found.pop(_PARENT).lm_loss
    return {
        name: Fidelity(each.kl, each.lm_loss - base, each.top1_agreement, each.hidden_cosine)
        for name, each in found.items()
    }
