"""Adam's moments that are made before training change no bit of it."""

import pytest
import torch
from torch import nn

from blocklib.moments import make_moments


@pytest.mark.parametrize("fused", [True, False])
def test_training_is_the_same_to_the_bit(fused: bool) -> None:
    ends = []
    for made in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(7, 5)
        groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias]}]
        optimizer = torch.optim.AdamW(groups, lr=0.1, fused=fused)
        if made:
            make_moments(optimizer)
            assert all(not moment.any() for state in optimizer.state.values() for moment in state.values())
        held = [state["exp_avg"] for state in optimizer.state.values()]
        for _ in range(5):
            model(torch.randn(3, 7)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        kept = [optimizer.state[parameter]["exp_avg"] for parameter in model.parameters()]
        assert not made or all(one is other for one, other in zip(kept, held, strict=True))
        ends.append([*model.parameters(), *(state["step"] for state in optimizer.state.values())])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
