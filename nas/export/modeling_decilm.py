# SPDX-License-Identifier: Apache-2.0
"""A DeciLM (Nemotron-NAS) model in transformers. This file is copied into the folder that is written, so that
transformers, lm_eval and PEFT load it. vLLM, SGLang and TensorRT-LLM have code of their own and do not read it.

It is Llama whose layers are sized by `block_configs`. A half that is a no-op has no parameters, not even its norm. The
attentions are numbered one after the other, so layers without attention have no place in the cache.
"""

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from nas.export.configuration_decilm import DeciLMConfig


def sized(config: DeciLMConfig, **sizes: Any) -> LlamaConfig:
    """The configuration of one half of a layer."""
    shared = ("hidden_size", "num_attention_heads", "head_dim", "hidden_act", "attention_bias", "attention_dropout")
    return LlamaConfig(**{name: getattr(config, name) for name in (*shared, "mlp_bias")}, **sizes)


def width_of(ffn_mult: float, hidden: int) -> int:
    """The FFN width for an `ffn_mult`: 2/3 x `ffn_mult` x hidden size, rounded up to a multiple of 256."""
    least = int(2 * ffn_mult * hidden / 3)
    return -(-least // 256) * 256


class DeciLMAttention(LlamaAttention):
    """Llama's attention with the KV heads of its layer."""

    def __init__(self, config: DeciLMConfig, kv_heads: int, place_in_cache: int):
        super().__init__(sized(config, num_key_value_heads=kv_heads), place_in_cache)
        self.config = config  # The model's own says how attention is computed.


class DeciLMLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + ffn(norm(x)); either half may be absent."""

    def __init__(self, config: DeciLMConfig, block: Any, place_in_cache: int):
        super().__init__()
        self.self_attn, self.mlp = None, None
        if not block.attention.no_op:
            kv_heads = config.num_attention_heads // block.attention.n_heads_in_group
            self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.self_attn = DeciLMAttention(config, kv_heads, place_in_cache)
        if not block.ffn.no_op:
            stated = hasattr(block.ffn, "ffn_mult")
            width = width_of(block.ffn.ffn_mult, config.hidden_size) if stated else block.ffn.intermediate_size
            self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.mlp = LlamaMLP(sized(config, intermediate_size=width))

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self.self_attn is not None:
            attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
            hidden_states = hidden_states + attended
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


class DeciLMPreTrainedModel(LlamaPreTrainedModel):
    config: DeciLMConfig
    config_class = DeciLMConfig
    _no_split_modules = ["DeciLMLayer"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": DeciLMLayer, "attentions": DeciLMAttention}  # noqa: RUF012


class DeciLMModel(DeciLMPreTrainedModel, LlamaModel):
    """LlamaModel over these layers; it runs them as it runs its own."""

    def __init__(self, config: DeciLMConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        layers, place_in_cache = [], 0
        for block in config.block_configs:
            layers.append(DeciLMLayer(config, block, place_in_cache))
            place_in_cache += not block.attention.no_op
        self.layers = nn.ModuleList(layers)
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]


class DeciLMForCausalLM(DeciLMPreTrainedModel, LlamaForCausalLM):
    """LlamaForCausalLM over DeciLMModel."""

    def __init__(self, config: DeciLMConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = DeciLMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]
