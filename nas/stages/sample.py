"""A sentence by the child, so that a person can judge it."""

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from blocklib.model import PuzzleNasForCausalLM
from nas.stages.library import Ids

_PROMPT_TOKENS, _NEW_TOKENS = 16, 48


@torch.no_grad()
def sample(child: PuzzleNasForCausalLM, tokenizer: PreTrainedTokenizerBase, evaluation: Ids) -> str:
    """Greedy continuation of the first held-out tokens, prompt included."""
    prompt = torch.from_numpy(evaluation[:1, :_PROMPT_TOKENS].copy()).long()
    model: Any = child  # generate's own types ask for a protocol no model states
    # A parent may have fewer learned positions. The last token is generated and never read.
    new = min(_NEW_TOKENS, max(1, child.config.max_position_embeddings + 1 - prompt.shape[1]))
    model.generation_config = GenerationConfig()  # Greedy, whatever the parent's settings are.
    generated = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, pad_token_id=0)
    return str(tokenizer.decode(generated[0], skip_special_tokens=True))
