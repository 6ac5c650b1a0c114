"""The norms of a model, of the kind that its configuration says."""

from typing import Any

from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm


def new_norm(config: Any) -> nn.Module:
    """A norm of the layout's kind over the hidden size."""
    if config.layer_norm:
        return nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps)
    return rms_norm(config, config.hidden_size)


def rms_norm(config: Any, size: int) -> nn.Module:
    """An RMS norm over so many numbers. A zero-centred one multiplies by 1 + its weight, in float32."""
    kind = GemmaRMSNorm if config.zero_centred_norms else LlamaRMSNorm
    return kind(size, eps=config.rms_norm_eps)
