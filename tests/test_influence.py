"""Block influence, as ShortGPT measures it, is what transformers' own layers say."""

from typing import Any

import numpy as np
import pytest
import torch
from parents import FAMILIES, parent_from, random_ids, random_model
from torch import Tensor

from blocklib.parent import Parent
from nas.scoring.block_influence import block_influence

LAYERS = 8


@pytest.mark.parametrize("seed", range(3))
def test_block_influence_is_that_of_transformers_own_layers(seed: int) -> None:
    """By hooks: what enters and leaves each layer. The last one's output in `hidden_states` is after the final norm."""
    model: Any = random_model(FAMILIES["llama"](num_hidden_layers=LAYERS), seed)
    ids = random_ids(parent_from(model), sequences=5, tokens=24)
    passed: list[tuple[Tensor, Tensor]] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, inputs, output: passed.append((inputs[0], output)))
    with torch.no_grad():
        normed = model(ids, use_cache=False, output_hidden_states=True).hidden_states[-1]

    def turned(entered: Tensor, left: Tensor) -> float:
        dots = (entered.double() * left.double()).sum(-1)
        return float((1 - dots / entered.double().norm(dim=-1) / left.double().norm(dim=-1)).mean())

    found = block_influence(parent_from(model), ids)
    assert found == pytest.approx([turned(*each) for each in passed], abs=1e-6)
    assert all(0 <= influence <= 2 for influence in found)
    assert abs(turned(passed[-1][0], normed) - found[-1]) > 1e-3, "a final norm must show"


def test_batches_change_no_block_influence(trained_parent: Parent, text_ids: Tensor) -> None:
    ids = text_ids[:9]
    whole_batch = block_influence(trained_parent, ids, batch=9)
    for batch in (1, 2, 4, 100):
        found = block_influence(trained_parent, ids, batch=batch)
        assert found == pytest.approx(whole_batch, rel=1e-5)
        assert np.argsort(found).tolist() == np.argsort(whole_batch).tolist()
