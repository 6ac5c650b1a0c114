"""Block influence: how much each of the parent's layers turns its residual (ShortGPT, arXiv 2403.03853, section 3).

A layer that hardly turns it is one ShortGPT drops first. The last layer is measured before the final norm.
"""

import torch
from torch import Tensor

from blocklib.parent import Parent
from blocklib.stream import slots


@torch.no_grad()
def block_influence(parent: Parent, ids_BT: Tensor, batch: int = 8) -> list[float]:
    """1 - the mean cosine between what enters each layer and what leaves it, layer by layer; `ids_BT` is token ids."""
    turned = torch.zeros(parent.shape.layers, dtype=torch.float64)
    entered = torch.empty(0)
    for ids in ids_BT.split(batch):
        for here in slots(parent.model, ids, 2 * parent.shape.layers):
            layer, is_ffn = divmod(here.slot, 2)
            if is_ffn:
                left = here.entering_BTD + here.delta_BTD
                turned[layer] += (
                    (1 - torch.cosine_similarity(entered.float(), left.float(), dim=-1)).sum().double().cpu()
                )
            else:
                entered = here.entering_BTD
    return [float(value) for value in turned / ids_BT.numel()]
