"""A reference reader of DeciLM (Nemotron-NAS) folders, written from the format's published semantics.

It is not an engine. It shares no code with the exporter. It builds plain Llama parts of transformers from
`block_configs` alone and follows the sources of `DeciLMForCausalLM` in vLLM, SGLang and TensorRT-LLM: which keys
decide, how `ffn_mult` rounds to a width, and which parameters a no-op layer lacks. It runs whole sequences only and has
no cache.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

from nas.export.configuration_decilm import DeciLMConfig

_SHARED_SIZES = ("hidden_size", "num_attention_heads", "head_dim", "hidden_act")

WIDTH_MULTIPLE = 256
"""Every width an `ffn_mult` can mean is a multiple of it."""


def width_of(ffn_mult: float, hidden: int) -> int:
    """The FFN width for an `ffn_mult`: 2/3 x `ffn_mult` x hidden size, rounded up to a multiple of 256."""
    least = int(2 * ffn_mult * hidden / 3)
    return -(-least // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def read_decilm(folder: Path) -> "DeciLM":
    """The model in float32. Raises RuntimeError if the tensors do not match `block_configs` exactly."""
    config = DeciLMConfig.from_pretrained(folder)
    model = DeciLM(config)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, strict=True)
    return model.eval()


class DeciLM(nn.Module):
    """Token ids [B, T] to logits [B, T, vocabulary]."""

    def __init__(self, config: DeciLMConfig):
        super().__init__()
        self.model = _Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @torch.no_grad()
    def forward(self, ids_BT: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.model(ids_BT))
        return logits


class _Decoder(nn.Module):
    def __init__(self, config: DeciLMConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([_ReadLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)

    def forward(self, ids_BT: Tensor) -> Tensor:
        hidden_BTD = self.embed_tokens(ids_BT)
        positions = self.rotary_emb(hidden_BTD, torch.arange(ids_BT.shape[1])[None])
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, positions)
        normed: Tensor = self.norm(hidden_BTD)
        return normed


class _ReadLayer(nn.Module):
    """A Llama layer sized by its block; a no-op half has no parameters at all, not even its norm."""

    def __init__(self, config: DeciLMConfig, index: int):
        super().__init__()
        block, hidden = config.block_configs[index], config.hidden_size
        self.has_attention, self.has_ffn = not block.attention.no_op, not block.ffn.no_op
        if self.has_attention:
            kv_heads = config.num_attention_heads // block.attention.n_heads_in_group
            self.input_layernorm = LlamaRMSNorm(hidden, eps=config.rms_norm_eps)
            self.self_attn = LlamaAttention(_llama(config, num_key_value_heads=kv_heads), index)
        if self.has_ffn:
            stated = hasattr(block.ffn, "ffn_mult")
            width = width_of(block.ffn.ffn_mult, hidden) if stated else block.ffn.intermediate_size
            self.post_attention_layernorm = LlamaRMSNorm(hidden, eps=config.rms_norm_eps)
            self.mlp = LlamaMLP(_llama(config, intermediate_size=width))

    def forward(self, hidden_BTD: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
        if self.has_attention:
            attended, _ = self.self_attn(self.input_layernorm(hidden_BTD), positions, attention_mask=None)
            hidden_BTD = hidden_BTD + attended
        if self.has_ffn:
            hidden_BTD = hidden_BTD + self.mlp(self.post_attention_layernorm(hidden_BTD))
        return hidden_BTD


def _llama(config: DeciLMConfig, **sizes: int) -> LlamaConfig:
    # sdpa is causal without a mask; eager is not.
    settings: dict[str, Any] = {"attn_implementation": "sdpa"} | sizes
    return LlamaConfig(**{name: getattr(config, name) for name in _SHARED_SIZES}, **settings)
