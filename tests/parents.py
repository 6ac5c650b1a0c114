"""Tiny parents with random weights, of every family, and children of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from blocklib.activations import cached
from blocklib.assemble import assemble
from blocklib.block import SKIP, Architecture, Choice
from blocklib.distil import Texts
from blocklib.families import own_names, shape_of
from blocklib.initial_weights import build
from blocklib.kind import Weights
from blocklib.kinds import parent_architecture
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, child_config, parent_of

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
# Granite's constants, none of them a power of two: a lost one must show.
MULTIPLIERS: dict[str, float] = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "logits_scaling": 0.6,
}
# A window shorter than any text, positions that differ, and a scale that is not that of the head size.
GEMMA3: dict[str, Any] = {
    "head_dim": 8,
    "query_pre_attn_scalar": 24,
    "attention_bias": True,
    "tie_word_embeddings": True,
    "sliding_window": 5,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
    },
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
# Eight heads of eight are twice the hidden size: nothing may take one for the other.
FAMILIES: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": lambda **sizes: LlamaConfig(**SIZES | {"head_dim": 8, "attention_bias": True, "mlp_bias": True} | sizes),
    "mistral": lambda **sizes: MistralConfig(**SIZES | {"head_dim": 8, "sliding_window": None} | sizes),
    "qwen2": lambda **sizes: Qwen2Config(**SIZES | {"tie_word_embeddings": True} | sizes),
    "qwen3": lambda **sizes: Qwen3Config(**SIZES | {"head_dim": 8} | sizes),
    "phi3": lambda **sizes: Phi3Config(**SIZES | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | sizes),
    "granite": lambda **sizes: GraniteConfig(**SIZES | MULTIPLIERS | {"attention_bias": True} | sizes),
    "smollm3": lambda **sizes: SmolLM3Config(
        **SIZES | {"no_rope_layer_interval": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | sizes
    ),
    "olmo2": lambda **sizes: Olmo2Config(
        **SIZES | {"attention_bias": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | sizes
    ),
    "gemma3_text": lambda **sizes: Gemma3TextConfig(**SIZES | GEMMA3 | {"layer_types": _every_third(sizes)} | sizes),
    "gpt2": lambda **sizes: GPT2Config(**_gpt(n_inner=48, **sizes)),
    "gpt_neo": lambda **sizes: GPTNeoConfig(
        **_gpt(intermediate_size=48, attention_types=[[["global", "local"], 3]], window_size=64, **sizes)
    ),
}
GPT = ("gpt2", "gpt_neo")
"""The families of GPT-2's layout."""
UP_TO_ROUNDING = (*GPT, "phi3", "olmo2")
"""Those that store matrices the other way round or joined, or compute attention otherwise, or round norms later."""
UNFUSED = ("olmo2", "gemma3_text")
"""Those with norms behind FFNs."""


def _every_third(sizes: dict[str, Any]) -> list[str]:
    """The types of layers of which every third sees all tokens."""
    layers = range(1, sizes.get("num_hidden_layers", SIZES["num_hidden_layers"]) + 1)
    return ["sliding_attention" if layer % 3 else "full_attention" for layer in layers]


def _gpt(**sizes: Any) -> dict[str, Any]:
    """Their sizes: as many KV heads as query heads, which their hidden size is divided among."""
    kept = SIZES.keys() - {"intermediate_size", "num_key_value_heads"}
    return {name: SIZES[name] for name in kept} | {"bos_token_id": 1, "eos_token_id": 2} | sizes


EVERY_KIND = "skip+ffn48 kv2+ffn16 linear+linear skip+skip kv1+fuse(ffn48,ffn24)"
"""An architecture of six layers, the first of which keeps no cache."""


def every_kind(family: str) -> str:
    """`EVERY_KIND` as far as a family has it: FFNs with norms behind them cannot be fused."""
    return EVERY_KIND.replace("kv1+fuse(ffn48,ffn24)", "kv1+ffn24 skip+ffn48") if family in UNFUSED else EVERY_KIND


def random_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """transformers' own class. Biases and norms, which it makes 0 and 1, are random: a lost one must show."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.eval()
    return model


def parent_from(model: PreTrainedModel) -> Parent:
    """The parent that `load_parent` would make of the model once saved."""
    shape = shape_of(model.config)
    weights = own_names(model.config.model_type, model.state_dict(), shape_of(model.config))
    return parent_of("random", child_config(model.config, parent_architecture(shape), shape), weights)


def random_parent(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any) -> Parent:
    model = random_model(FAMILIES[family](**sizes), seed)
    torch.nn.Module.to(model, dtype)
    return parent_from(model)


def random_ids(parent: Parent, sequences: int = 2, tokens: int = 12, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(parent.shape.vocabulary, (sequences, tokens), generator=generator)


def texts_of(parent: Parent, calibration: Tensor, distillation: Tensor, heldout: Tensor, batch: int) -> Texts:
    """The parent's activations on three texts, cached as a search caches them."""
    return Texts(*(cached(parent.model, ids, batch) for ids in (calibration, distillation, heldout)), batch=batch)


def first_weights_of(parent: Parent, architecture: Architecture) -> dict[Choice, Weights]:
    """First weights of every attention and FFN that is not the parent's own."""
    parts = [part for choice in architecture.choices() if not choice.is_table for part in choice.parts]
    asked = [part for part in parts if part.what != SKIP and not parent.own(part)]
    built = build(parent, asked, cached(parent.model, random_ids(parent), 2), batch=2, fit=False)
    return {unit.choice: unit.first for unit in built}


def child_of(parent: Parent, spelling: str) -> PuzzleNasForCausalLM:
    """A child with first weights."""
    architecture = Architecture.parse(spelling)
    weights = first_weights_of(parent, architecture)
    return assemble(parent, architecture, lambda choice: weights.get(choice, {}))


@torch.no_grad()
def logits(model: torch.nn.Module, ids_BT: Tensor) -> Tensor:
    found: Tensor = model(ids_BT, use_cache=False).logits
    return found
