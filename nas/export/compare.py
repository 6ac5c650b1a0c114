"""Whether a reloaded export is the child: the same logits on the same tokens, the same tokens for the same text.

This file knows no format and loads nothing. It compares everything in float32 on the CPU, where rounding stays far
below the tolerance, whatever type and device the child has.
"""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import model_with
from nas.errors import ExportMismatchError

TOLERANCE = 1e-4
"""Largest absolute difference of two logits that counts as rounding."""

SAMPLE_TEXT = "Once upon a time, there were 1,234 naïve puzzles:\n    def f(x): return x"


def probe_ids(vocabulary: int) -> Tensor:
    """Token ids [2, 16] to compare on, the same for every run."""
    return torch.randint(vocabulary, (2, 16), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_of(child: PuzzleNasForCausalLM, ids_BT: Tensor) -> Tensor:
    """The child's logits [B, T, vocabulary] in float32 on the CPU. The child itself stays as it is."""
    weights = {name: tensor.detach().float().cpu() for name, tensor in child.state_dict().items()}
    logits: Tensor = model_with(child.config, weights)(ids_BT, use_cache=False).logits
    return logits


def logit_difference(child_BTV: Tensor, reloaded_BTV: Tensor, target: str) -> float:
    """The largest absolute difference. Raises ExportMismatchError if it exceeds the tolerance, or is not a number."""
    difference = (child_BTV - reloaded_BTV).abs().max().item()
    if not difference <= TOLERANCE:
        raise ExportMismatchError(
            f"{target} gives logits up to {difference:.3g} away from the child's; at most {TOLERANCE} is allowed"
        )
    return difference


def same_tokens(tokenizer: PreTrainedTokenizerBase, reloaded: list[int], target: str) -> None:
    """Raise ExportMismatchError where `reloaded`, the tokens of SAMPLE_TEXT, are not the tokenizer's own."""
    own = tokenizer(SAMPLE_TEXT)["input_ids"]
    if own != reloaded:
        raise ExportMismatchError(
            f"{target} does not tokenise text as the child's tokenizer does: {reloaded[:8]}, not {own[:8]}"
        )
