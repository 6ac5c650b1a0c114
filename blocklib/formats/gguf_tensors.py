"""The tensors of a GGUF file by llama.cpp's names, from a child's by ours.

Weights may be on torch's meta device: a model of random weights is the same tensors by shape. Legend: H query heads,
K KV heads, E head size, D hidden.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from blocklib.block import Choice, Subblock
from blocklib.formats.gguf_carrier import Carrier
from blocklib.formats.reblock import ONE_HEAD, MixerLayer, is_linear
from blocklib.formats.subblocks import tensor_shapes
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from blocklib.shape import Shape
from blocklib.tables import EMBEDDING, HEAD

Tensors = dict[str, Tensor]

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.linear_attn": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TABLES = {EMBEDDING: "token_embd.weight", HEAD: "output.weight"}
"""Their names of the tables, by ours."""
_AS_MIXER = {"post_attention_layernorm": "attn_norm", "mlp.linear_mlp": "attn_output"}
"""A linear FFN stands where llama.cpp has its linear attention."""


def layer_tensors(
    layer: MixerLayer, weights_of: Callable[[Choice], Tensors], carrier: Carrier, shape: Shape
) -> Tensors:
    """A layer's tensors by their names behind `blk.N.`. `weights_of` may know some of a subblock's alone."""
    found: Tensors = {}
    if layer.zero_mixer:
        one_head = replace(shape, heads=1, kv_heads=1, qkv_bias=False, o_bias=False)
        found |= _mixer(_zeros(Choice(0, "attention", ONE_HEAD), one_head), carrier, shape)
    elif is_linear(layer.mixer):
        assert layer.mixer is not None
        found |= _renamed(weights_of(layer.mixer), _AS_MIXER if layer.mixer.role == "ffn" else _NAMES)
    elif layer.mixer is not None:
        found |= _mixer(weights_of(layer.mixer), carrier, shape)
    if layer.zero_width:
        nothing = Choice(0, "ffn", Subblock("ffn", str(layer.zero_width)))
        found |= _renamed(_zeros(nothing, replace(shape, mlp_bias=False)), _NAMES)
    elif layer.ffn is not None:
        found |= _renamed(weights_of(layer.ffn), _NAMES)
    return found


def fixed_tensors(model: Tensors, config: PuzzleNasConfig) -> Tensors:
    """Embedding, final norm, head unless it is tied, as far as they are in `model`, and the factors of rotary
    frequencies under llama3 scaling."""
    names = {EMBEDDING: TABLES[EMBEDDING], "model.norm.weight": "output_norm.weight"}
    names |= {} if config.tie_word_embeddings else {HEAD: TABLES[HEAD]}
    found = {theirs: model[ours] for ours, theirs in names.items() if ours in model}
    rope: dict[str, Any] = dict(config.rope_parameters or {})
    if rope.get("rope_type") == "llama3":
        found["rope_freqs.weight"] = llama3_factors(rope, own_shape(config).head_dim)
    return found


def llama3_factors(rope: dict[str, Any], head_dim: int) -> Tensor:
    """[E/2] what each rotary frequency is divided by (Llama 3.1): 1 for short wavelengths, `factor` for long ones."""
    wavelength = (
        2 * math.pi * float(rope["rope_theta"]) ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    )
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    kept = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - kept) / float(rope["factor"]) + kept)).float()


def _zeros(choice: Choice, shape: Shape) -> Tensors:
    """Weights of a subblock that adds nothing, its norms ones."""
    return {
        name: torch.ones(size) if len(size) == 1 else torch.zeros(size)
        for name, size in tensor_shapes(choice, shape).items()
    }


def _mixer(weights: Tensors, carrier: Carrier, shape: Shape) -> Tensors:
    """An attention's tensors in the order of rows that the carrier's rotary positions expect."""
    found = dict(weights)
    if carrier.interleaved:
        for projection in ("q_proj", "k_proj"):
            for part in ("weight", "bias"):
                name = f"self_attn.{projection}.{part}"
                if name in found:
                    found[name] = _interleaved(found[name], shape.head_dim)
    renamed = _renamed(found, _NAMES)
    if carrier.fused and "attn_q.weight" in renamed:
        parts = [renamed.pop(f"attn_{part}.weight") for part in "qkv"]
        renamed["attn_qkv.weight"] = torch.cat(parts)
    return renamed


def _interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """[H*E, ...] with row i of a head's first half beside row i of its second half."""
    heads = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return heads.transpose(1, 2).reshape(rows.shape)


def _renamed(weights: Tensors, names: dict[str, str]) -> Tensors:
    found = {}
    for name, tensor in weights.items():
        module, _, part = name.rpartition(".")
        found[f"{names[module]}.{part}"] = tensor
    return found
