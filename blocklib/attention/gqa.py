"""`kvN`: grouped-query attention with N KV heads; the parent's own is one of them.

First weights mean-pool adjacent KV heads (GQA, arXiv 2305.13245, section 2.1; Puzzle, arXiv 2411.19146, section 3.2);
queries and the output projection stay.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from blocklib.block import Subblock
from blocklib.errors import SubblockError
from blocklib.kind import Kind, ParentLayer
from blocklib.norms import rms_norm
from blocklib.shape import Shape


class GroupedQueryAttention(nn.Module):
    """Causal attention. It uses a sliding window if the layer has one, and rotary positions if the layer has them and
    it is given tables: the first two, or in a local layer the last two. The configuration decides on biases and
    per-head query/key norms.
    """

    def __init__(self, config: Any, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.sliding_window = config.sliding_window
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.rotary, self.local = config.rotary, config.local
        query_size, kv_size = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.o_bias)
        self.joint_qk_norm = config.joint_qk_norm
        if config.qk_norm:
            self.q_norm = rms_norm(config, query_size if config.joint_qk_norm else self.head_dim)
            self.k_norm = rms_norm(config, kv_size if config.joint_qk_norm else self.head_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, ...] | None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        input_shape = hidden_states.shape[:-1]
        head_shape = (*input_shape, -1, self.head_dim)
        query, key = self.q_proj(hidden_states), self.k_proj(hidden_states)
        if self.joint_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = query.view(head_shape), key.view(head_shape)
        if self.config.qk_norm and not self.joint_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        value = self.v_proj(hidden_states).view(head_shape).transpose(1, 2)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        if self.rotary and position_embeddings is not None:
            cosines, sines = position_embeddings[-2:] if self.local else position_embeddings[:2]
            query, key = apply_rotary_pos_emb(query, key, cosines, sines)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        elif attention_mask is None and self.sliding_window is not None:
            # Whole sequences without a model: no caller made the mask.
            attention_mask = window_mask(key.shape[-2], self.sliding_window, key.device)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        output, _ = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        projected: torch.Tensor = self.o_proj(output.reshape(*input_shape, -1).contiguous())
        return projected


def window_mask(tokens: int, window: int, device: torch.device) -> torch.Tensor | None:
    """[1, 1, T, T], true where a token may attend: to itself and the window - 1 tokens before it. None if no mask is
    needed."""
    if tokens <= window:
        return None
    behind = torch.arange(tokens, device=device)[:, None] - torch.arange(tokens, device=device)
    return ((behind >= 0) & (behind < window))[None, None]


class GroupedQuery(Kind):
    output_projection = "self_attn.o_proj"
    module = GroupedQueryAttention
    keeps_cache = True

    def check(self, subblock: Subblock, shape: Shape) -> None:
        count = subblock.number
        if count < 1 or shape.kv_heads % count:
            divisors = [f"kv{n}" for n in range(1, shape.kv_heads + 1) if shape.kv_heads % n == 0]
            raise SubblockError(
                f"{subblock}: {count} KV heads do not divide the parent's {shape.kv_heads}; use {', '.join(divisors)}"
            )

    def layer_config(self, subblock: Subblock) -> dict[str, Any]:
        return {"attention_kind": "kv", "num_key_value_heads": subblock.number}

    def parameters(self, subblock: Subblock, shape: Shape) -> int:
        query, kv = shape.heads * shape.head_dim, subblock.number * shape.head_dim
        matrices = shape.hidden * (2 * query + 2 * kv)
        biases = shape.qkv_bias * (query + 2 * kv) + shape.o_bias * shape.hidden
        normed = query + kv if shape.joint_qk_norm else 2 * shape.head_dim
        return matrices + biases + shape.qk_norm * normed + shape.subblock_norm_parameters

    def kv_heads(self, subblock: Subblock, shape: Shape) -> int:
        return subblock.number

    def first_weights(self, subblock: Subblock, layers: Sequence[ParentLayer], shape: Shape) -> dict[str, Tensor]:
        (layer,) = layers
        weights = {
            name: tensor
            for name, tensor in layer.weights.items()
            if name.startswith(("self_attn.", "input_layernorm.", "attention_output_norm."))
        }
        for module in ("k_proj", "v_proj", *(("k_norm",) if shape.joint_qk_norm else ())):
            for part in ("weight", "bias"):
                name = f"self_attn.{module}.{part}"
                if name in weights:
                    weights[name] = _pool_heads(weights[name], subblock.number, shape)
        return weights


def _pool_heads(tensor: Tensor, kept: int, shape: Shape) -> Tensor:
    """[K*E, ...] -> [kept*E, ...]: the mean over each run of K/kept adjacent heads, taken in float32."""
    heads = tensor.float().view(kept, shape.kv_heads // kept, shape.head_dim, *tensor.shape[1:])
    return heads.mean(1).reshape(kept * shape.head_dim, *tensor.shape[1:]).to(tensor.dtype)
