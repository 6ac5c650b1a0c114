"""A few words by the child, so that a person can judge it."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from blocklib.model import PuzzleNasForCausalLM

_PROMPT_TOKENS, _NEW_TOKENS = 16, 48


@torch.no_grad()
def sample(child: PuzzleNasForCausalLM, ids_BT: Tensor) -> tuple[int, ...]:
    """Greedy continuation of the first of these tokens, prompt included."""
    prompt = ids_BT[:1, :_PROMPT_TOKENS].long()
    model: Any = child  # generate's own types ask for a protocol no model states
    # A parent may have fewer learned positions. The last token is generated and never read.
    new = min(_NEW_TOKENS, max(1, child.config.max_position_embeddings + 1 - prompt.shape[1]))
    before, model.generation_config = model.generation_config, GenerationConfig()  # Greedy, whatever the parent's are.
    generated = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, pad_token_id=0)
    model.generation_config = before
    return tuple(generated[0].tolist())
