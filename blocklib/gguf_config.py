"""The configuration that a GGUF file's header means, as transformers has it.

transformers' own reader leaves out RoPE scaling, biases and the head size of some architectures, and keeps numbers as
float32 rounds them. A file whose meaning we do not know is refused.
"""

import math
from collections.abc import Sequence
from typing import Any

from blocklib.errors import CheckpointError, UnsupportedModelError
from blocklib.gguf_header import GgufHeader

_ORIGINAL = "give the folder of the checkpoint it was made from"
_SPECIAL = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
# Keys of transformers and of llama.cpp; an absent one has the same default in both.
_YARN = {"beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}
_YARN_REFUSED = ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor")
_LLAMA3: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TOLERANCE = 1e-4


def config_values(header: GgufHeader, rotary: Sequence[float] | None) -> dict[str, Any]:
    """The fields of config.json. `rotary`: the numbers of the tensor `rope_freqs.weight`; None where there is none.

    Raises CheckpointError and UnsupportedModelError for what no configuration of ours can say.
    """
    heads, names = header.own("attention.head_count"), header.tensors
    head_dim = header.own("attention.key_length") or header.own("rope.dimension_count")
    head_dim = head_dim or header.own("embedding_length") // heads
    if header.own("rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedModelError(f"{header.file}: rotary positions of a part of each head are not supported")
    if header.own("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(f"{header.file}: values of another size than keys are not supported")
    if "token_embd.weight" not in names:
        raise CheckpointError(header.file, "holds no token_embd.weight", f"convert it again, or {_ORIGINAL}")
    epsilon = header.own("attention.layer_norm_rms_epsilon")
    if epsilon is None:
        cause = f"has no {header.architecture}.attention.layer_norm_rms_epsilon"
        raise CheckpointError(header.file, cause, f"convert it again, or {_ORIGINAL}")
    values = {
        "hidden_size": header.own("embedding_length"),
        "num_hidden_layers": header.own("block_count"),
        "intermediate_size": header.own("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.own("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": header.own("context_length"),
        "rms_norm_eps": _short(epsilon),
        "rope_parameters": _rope(header, head_dim, rotary),
        "vocab_size": names["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in names,
        **{ours: header.keys.get(f"tokenizer.ggml.{theirs}") for ours, theirs in _SPECIAL.items()},
    }
    if header.architecture != "qwen2":
        values["attention_bias"] = "blk.0.attn_q.bias" in names
    if header.architecture == "llama":
        values["mlp_bias"] = "blk.0.ffn_up.bias" in names
    return values


def generation_values(header: GgufHeader) -> dict[str, Any]:
    """The fields of generation_config.json: a chat model ends a turn with a token of its own."""
    found = {ours: header.keys.get(f"tokenizer.ggml.{theirs}") for ours, theirs in _SPECIAL.items()}
    ends = [found["eos_token_id"], header.keys.get("tokenizer.ggml.eot_token_id")]
    several = sorted({end for end in ends if end is not None})
    if len(several) > 1:
        found["eos_token_id"] = several
    return {name: value for name, value in found.items() if value is not None}


def _rope(header: GgufHeader, head_dim: int, rotary: Sequence[float] | None) -> dict[str, Any]:
    theta = _short(header.own("rope.freq_base", 10000.0))
    kind = header.own("rope.scaling.type", "none")
    factor = header.own("rope.scaling.factor") or header.own("rope.scale_linear") or 1.0
    scaled = {"rope_theta": theta, "factor": _short(factor)}
    if rotary is not None and max(rotary) > 1.0:
        if kind != "none":
            cause = f"has both rope_freqs.weight and RoPE scaling {kind!r}"
            raise CheckpointError(header.file, cause, _ORIGINAL)
        return {"rope_type": "llama3", "rope_theta": theta, **_llama3(header, theta, head_dim, rotary)}
    if factor == 1.0 or kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if kind == "linear":
        return {"rope_type": "linear", **scaled}
    if kind != "yarn" or any(header.own(key, 1.0) != 1.0 for key in _YARN_REFUSED):
        raise UnsupportedModelError(f"{header.file}: RoPE scaling {kind!r} as it has it is not supported")
    original = header.own("rope.scaling.original_context_length", header.own("context_length"))
    betas = {ours: _short(header.own(key)) for ours, key in _YARN.items() if header.own(key) is not None}
    return {"rope_type": "yarn", "original_max_position_embeddings": original, **scaled, **betas}


def _llama3(header: GgufHeader, theta: float, head_dim: int, rotary: Sequence[float]) -> dict[str, Any]:
    """Llama 3's scaling, of which a file holds only what it comes to: a divisor for each frequency.

    Between the high frequencies, kept, and the low ones, divided by `factor`, the share that is kept is linear in the
    frequency; the line tells where the two begin. Raises CheckpointError where the divisors are no such scaling's.
    """
    factor = _short(max(rotary))
    frequencies = [theta ** (-2 * index / head_dim) for index in range(head_dim // 2)]
    tried = [_LLAMA3]
    between = [
        (frequency, (1 / divisor - 1 / factor) / (1 - 1 / factor))
        for frequency, divisor in zip(frequencies, rotary, strict=False)
        if 1.0 + _TOLERANCE < divisor < factor - _TOLERANCE
    ]
    if len(between) > 1:
        (x, kept), (other, other_kept) = between[0], between[-1]
        slope = (kept - other_kept) / (x - other)
        high = 1 + 1 / (slope * x - kept)
        original = round(2 * math.pi * slope * (high - 1))
        tried.append(_LLAMA3 | {"high_freq_factor": round(high, 2), "original_max_position_embeddings": original})
    for values in tried:
        expected = _divisors(frequencies, factor, **values)
        if len(rotary) == len(expected) and all(
            math.isclose(one, other, rel_tol=_TOLERANCE) for one, other in zip(rotary, expected, strict=True)
        ):
            return {"factor": factor, **values}
    raise CheckpointError(header.file, "its rope_freqs.weight are of no RoPE scaling known here", _ORIGINAL)


def _divisors(
    frequencies: Sequence[float],
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> list[float]:
    """The divisor of each rotary frequency in Llama 3's scaling."""
    found = []
    for frequency in frequencies:
        turns = original_max_position_embeddings * frequency / (2 * math.pi)
        kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
        kept = min(max(kept, 0.0), 1.0)
        found.append(1 / ((1 - kept) / factor + kept))
    return found


def _short(value: float) -> float:
    """The shortest decimal that float32 rounds to this number: a file keeps 1e-05 as 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
