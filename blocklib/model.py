"""The model that runs any architecture: a transformers decoder whose layers are read from `per_layer_config`.

Parent and child are both instances of it, so a child's parent-like parts give the parent's bits. Everything in this
file and the kinds' modules use is torch and transformers, because the Hugging Face exporter copies these classes, as
text, into the directory it writes. Layers without attention keep no cache: their `layer_types` entry is `moe`, which
is how transformers marks a layer the cache must not count.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel, LlamaRMSNorm, LlamaRotaryEmbedding

from blocklib.kinds import ATTENTION_MODULES, FFN_MODULES


class PuzzleNasConfig(LlamaConfig):
    """A Llama configuration whose layers may differ: `per_layer_config` overrides, `skip` leaves a part out."""

    model_type = "puzzle_nas"

    architecture: str = ""
    attention_kind: str = "gqa"
    ffn_kind: str = "gated"
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    layer_types: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self.layer_types = ["full_attention" if has_cache(layer) else "moe" for layer in self.per_layer_config]
        if "full_attention" not in self.layer_types:
            # Nothing to keep: every token's logits depend on it alone, and a cache without layers cannot be asked.
            self.use_cache = False

    def validate_architecture(self) -> None:
        """Any head size is fine: `head_dim` is explicit, whatever the hidden size."""


def has_cache(layer_config: Any) -> bool:
    """Whether a layer attends, and so keeps keys and values."""
    return "attention" not in getattr(layer_config, "skip", []) and layer_config.attention_kind == "gqa"


class PuzzleNasLayer(GradientCheckpointingLayer):
    """One block: x + attention(norm(x)), then x + ffn(norm(x)); either part may be absent."""

    def __init__(self, config: Any, layer_idx: int):
        super().__init__()
        skipped = getattr(config, "skip", [])
        self.self_attn, self.mlp = None, None
        if "attention" not in skipped:
            self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.self_attn = ATTENTION_MODULES[config.attention_kind](config, layer_idx)
        if "mlp" not in skipped:
            self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.mlp = FFN_MODULES[config.ffn_kind](config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self.self_attn is not None:
            hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


class PuzzleNasPreTrainedModel(LlamaPreTrainedModel):
    config: PuzzleNasConfig
    config_class = PuzzleNasConfig
    _no_split_modules = ["PuzzleNasLayer"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": PuzzleNasLayer}  # noqa: RUF012


class PuzzleNasModel(PuzzleNasPreTrainedModel, LlamaModel):
    """LlamaModel's forward over layers of our own."""

    def __init__(self, config: PuzzleNasConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [PuzzleNasLayer(config.per_layer_config[i], i) for i in range(config.num_hidden_layers)]
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]


class PuzzleNasForCausalLM(PuzzleNasPreTrainedModel, LlamaForCausalLM):
    """LlamaForCausalLM over PuzzleNasModel."""

    def __init__(self, config: PuzzleNasConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = PuzzleNasModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.generation_config.use_cache = config.use_cache
        self.post_init()  # type: ignore[no-untyped-call]

    def create_masks_for_generate(self, attention_mask: torch.Tensor | None, **kwargs: Any) -> torch.Tensor | None:
        """For static caches transformers makes a mask per layer type, which Llama's forward cannot read. One serves
        all our layers, and the forward makes it."""
        return attention_mask


# Whoever imports this package loads its checkpoints by transformers' Auto classes, without trust_remote_code.
AutoConfig.register(PuzzleNasConfig.model_type, PuzzleNasConfig)
AutoModel.register(PuzzleNasConfig, PuzzleNasModel)
AutoModelForCausalLM.register(PuzzleNasConfig, PuzzleNasForCausalLM)
