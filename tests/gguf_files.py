"""Tiny GGUF files, written with the `gguf` package as llama.cpp's converter writes them, for tests to read and damage.

A key of `changed` that is None leaves the key out.
"""

import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from parents import FAMILIES, random_model
from transformers import PreTrainedModel

_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
WORDS = ["<unk>", "<s>", "</s>", "Ġ", "Ġt", "he", "Ġthe", "12", *string.digits, *string.ascii_letters[:46]]
_MERGES = ["1 2", "Ġ t", "h e", "Ġt he"]


def model_of(architecture: str = "llama", **sizes: Any) -> PreTrainedModel:
    """A model of two layers with random weights, whose sizes are multiples of 32."""
    wide = {"intermediate_size": 64, "num_hidden_layers": 2} | sizes
    return random_model(FAMILIES[architecture](**wide))


def written(
    file: Path,
    model: PreTrainedModel,
    stored: str = "F32",
    tensors: dict[str, np.ndarray] | None = None,
    **changed: Any,
) -> Path:
    """The model as a GGUF file; matrices of layers as `stored`. `changed`: keys, with __ for a dot; `tensors`: more."""
    config, file_tensors = model.config, _tensors(model) | (tensors or {})
    writer = GGUFWriter(file, config.model_type)
    own: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    keys = {f"{config.model_type}.{name}": value for name, value in own.items()} | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": WORDS,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(WORDS) - 3),
        "tokenizer.ggml.merges": _MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }
    for name, value in (keys | {name.replace("__", "."): value for name, value in changed.items()}).items():
        _add(writer, name, value)
    for name, array in file_tensors.items():
        kind = GGMLQuantizationType[stored if array.ndim > 1 and name.startswith("blk.") else "F32"]
        writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add(writer: GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif value is not None:
        writer.add_string(name, value)


def _tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """Under llama.cpp's names; queries and keys of Llama are permuted to its order of rotary pairs."""
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        name = name.replace("model.layers.", "blk.")
        for theirs, ours in _NAMES.items():
            name = name.replace(f"{theirs}.", f"{ours}.")
        if model.config.model_type == "llama" and (".attn_q." in name or ".attn_k." in name):
            heads = model.config.num_attention_heads if ".attn_q." in name else model.config.num_key_value_heads
            rows = tensor.shape[0] // heads // 2
            tensor = tensor.reshape(heads, 2, rows, -1).transpose(1, 2).reshape(tensor.shape)
        found[name] = np.ascontiguousarray(tensor.detach().to(torch.float32).numpy())
    return found
