"""A model that computes in another type than its weights are stored in."""

import pytest
import torch
from torch import Tensor, nn

from blocklib.compute_dtype import compute_in, converted_numbers

HIDDEN = 64


class _Headed(nn.Module):
    def __init__(self, vocabulary: int, dtype: torch.dtype):
        super().__init__()
        self.lm_head = nn.Linear(HIDDEN, vocabulary, bias=False, dtype=dtype).requires_grad_(False)

    def forward(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.lm_head(hidden)
        return found


@pytest.mark.parametrize("vocabulary", [1_000, 1_100_007])
def test_logits_are_those_of_a_head_that_was_converted_whole(vocabulary: int) -> None:
    """The larger head is converted some rows at a time, and the last time fewer."""
    torch.manual_seed(0)
    model, hidden = _Headed(vocabulary, torch.bfloat16), torch.randn(3, 5, HIDDEN)
    stored = model.lm_head.weight
    is_whole = converted_numbers(stored.numel()) == stored.numel()
    assert is_whole is (vocabulary == 1_000)
    compute_in(torch.float32, model, torch.device("cpu"))
    logits = model(hidden)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, nn.functional.linear(hidden, stored.float()))


def test_a_large_head_keeps_its_weight_as_it_is_stored() -> None:
    """Nobody is to find it in the other type: that copy would take more than the rest of a model at work."""
    model = _Headed(1_100_007, torch.bfloat16)
    compute_in(torch.float32, model, torch.device("cpu"))
    assert model.lm_head.weight.dtype == torch.bfloat16
