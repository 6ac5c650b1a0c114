"""The model that runs any architecture: a transformers decoder whose layers are read from `per_layer_config`.

Parent and child are both instances of it, so a child's parent-like parts give the parent's bits. It runs two layouts:
Llama's (RMS norms, rotary positions, gated FFN) and GPT-2's (layer norms with biases, learned positions, an FFN of two
matrices). Everything in this file and the kinds' modules use is torch and transformers, because the Hugging Face
exporter copies these classes, as text, into the directory it writes. Layers without attention keep no cache: their
`layer_types` entry is `moe`, which is how transformers marks a layer the cache must not count.
"""

import inspect
from dataclasses import field
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel, LlamaRotaryEmbedding
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from blocklib.kinds import ATTENTION_MODULES, FFN_MODULES
from blocklib.norms import new_norm
from blocklib.tables import LogitHead

# transformers called the cache `past_key_values` before 5.24. Its own functions and outputs take the name of the time.
CACHE_NAME = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


class PuzzleNasConfig(LlamaConfig):
    """A Llama configuration whose layers may differ: `per_layer_config` overrides, `skip` leaves a part out.

    `ffn_options` are the sizes of the layer's kind of FFN. `parallel`: the layer reads what the one before it read, and
    adds to its output. `rotary`: its queries and keys are turned by their positions; `unrotated_layers` are those of
    the parent's layers where they are not, as in SmolLM3. `attention_scale` None: the inverse root of the head size.
    The embedded tokens are multiplied by `embedding_multiplier`, whatever a subblock adds by `residual_multiplier`, and
    logits are divided by `logits_scaling`, as in Granite. `norm_placement` and `joint_qk_norm` are as in `Shape`.

    As in Gemma 3, the attention of `local_layers`, of the parent's, sees `local_window` tokens, with positions by
    `local_rope_parameters`; `local` marks a child's layer in place of one. `zero_centred_norms`: norms multiply by 1 +
    their weight. `rounds_embedding_multiplier`: it is rounded to the type that is computed in, before it multiplies.
    """

    model_type = "puzzle_nas"

    architecture: str = ""
    attention_kind: str = "kv"
    ffn_kind: str = "ffn"
    ffn_options: dict[str, Any] = field(default_factory=dict)
    parallel: bool = False
    rotary: bool = True
    unrotated_layers: list[int] = field(default_factory=list)
    sliding_window: int | None = None
    attention_scale: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    joint_qk_norm: bool = False
    norm_placement: str = "before"
    zero_centred_norms: bool = False
    rounds_embedding_multiplier: bool = False
    local: bool = False
    local_layers: list[int] = field(default_factory=list)
    local_window: int | None = None
    local_rope_parameters: dict[str, Any] | None = None
    gated_ffn: bool = True
    layer_norm: bool = False
    learned_positions: bool = False
    layer_types: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self.layer_types = [layer_type(layer) for layer in self.per_layer_config]

    def validate_architecture(self) -> None:
        """Any head size is fine: `head_dim` is explicit, whatever the hidden size."""

    @property
    def logit_scale(self) -> float:
        """The factor of logits, by the name under which vLLM looks for it."""
        return 1 / self.logits_scaling


def layer_type(layer_config: Any) -> str:
    """The part of a layer that transformers' caches keep: every token, a window of them, or, for `moe`, nothing."""
    if "attention" in getattr(layer_config, "skip", []) or layer_config.attention_kind == "linear":
        return "moe"
    return "full_attention" if layer_config.sliding_window is None else "sliding_attention"


def multiplied(states: torch.Tensor, factor: float) -> torch.Tensor:
    """The states times a constant of the model; the states themselves where it is 1."""
    return states if factor == 1 else states * factor


def multiplied_embedding(states: torch.Tensor, config: Any) -> torch.Tensor:
    """Embedded tokens times the model's constant for them."""
    factor = config.embedding_multiplier
    if config.rounds_embedding_multiplier:
        factor = torch.tensor(factor, dtype=states.dtype).item()
    return multiplied(states, factor)


def local_rotary(config: Any) -> LlamaRotaryEmbedding:
    """The positions of local layers."""
    kept = {"head_dim": config.head_dim, "max_position_embeddings": config.max_position_embeddings}
    return LlamaRotaryEmbedding(config=LlamaConfig(rope_parameters=config.local_rope_parameters, **kept))


def norms_around(
    placement: str, norm: nn.Module, output_norm: nn.Module | None
) -> tuple[nn.Module | None, nn.Module | None]:
    """The norm before a subblock and the one behind it, either of which may be absent."""
    return (None, norm) if placement == "after" else (norm, output_norm)


class PuzzleNasLayer(GradientCheckpointingLayer):
    """One block: x + attention(norm(x)), then x + ffn(norm(x)); either part may be absent. With norms "after" it is
    x + norm(attention(x)), then x + norm(ffn(x)), with the norms by the same names, and with norms "around"
    x + output_norm(attention(norm(x))), then x + output_norm(ffn(norm(x))).

    Given `entering`, it reads that, and adds what it would to `hidden_states`.
    """

    def __init__(self, config: Any, layer_idx: int):
        super().__init__()
        skipped = getattr(config, "skip", [])
        self.config = config
        self.attends = layer_type(config) != "moe"
        self.window = config.sliding_window if self.attends else None
        self.norm_placement, self.residual_multiplier = config.norm_placement, config.residual_multiplier
        self.self_attn, self.mlp = None, None
        self.attention_output_norm, self.mlp_output_norm = None, None
        has_both = config.norm_placement == "around"
        if "attention" not in skipped:
            self.input_layernorm = new_norm(config)
            self.self_attn = ATTENTION_MODULES[config.attention_kind](config, layer_idx)
            self.attention_output_norm = new_norm(config) if has_both else None
        if "mlp" not in skipped:
            self.post_attention_layernorm = new_norm(config)
            self.mlp = FFN_MODULES[config.ffn_kind](config)
            self.mlp_output_norm = new_norm(config) if has_both else None

    def attended(self, residual: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The attention's part of the next residual, from the residual that enters it."""
        norms = norms_around(self.norm_placement, self.input_layernorm, self.attention_output_norm)
        return self._added(self.self_attn, norms, residual, **kwargs)

    def fed_forward(self, residual: torch.Tensor) -> torch.Tensor:
        """The FFN's part of the next residual, from the residual that enters it."""
        norms = norms_around(self.norm_placement, self.post_attention_layernorm, self.mlp_output_norm)
        return self._added(self.mlp, norms, residual)

    def ffn_input(self, residual: torch.Tensor) -> torch.Tensor:
        """The input of the FFN, from the residual that enters it."""
        return residual if self.norm_placement == "after" else self.post_attention_layernorm(residual)

    def _added(self, subblock: Any, norms: Any, residual: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        before, behind = norms
        added = subblock(residual if before is None else before(residual), **kwargs)
        return multiplied(added if behind is None else behind(added), self.residual_multiplier)

    def forward(self, hidden_states: torch.Tensor, entering: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        left = hidden_states if entering is None else entering
        if self.self_attn is not None:
            added = self.attended(left, **kwargs)
            left = left + added
            hidden_states = left if entering is None else hidden_states + added
        if self.mlp is not None:
            hidden_states = hidden_states + self.fed_forward(left)
        return hidden_states


class PuzzleNasPreTrainedModel(LlamaPreTrainedModel):
    config: PuzzleNasConfig
    config_class = PuzzleNasConfig
    _no_split_modules = ["PuzzleNasLayer"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": PuzzleNasLayer}  # noqa: RUF012


class PuzzleNasModel(PuzzleNasPreTrainedModel, LlamaModel):
    """LlamaModel over layers of our own, each with the attention mask of its window."""

    def __init__(self, config: PuzzleNasConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [PuzzleNasLayer(config.per_layer_config[i], i) for i in range(config.num_hidden_layers)]
        )
        self.norm = new_norm(config)  # type: ignore[assignment]
        if config.learned_positions:
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        else:
            self.make_rotary()
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]

    def make_rotary(self, device: torch.device | None = None) -> None:
        """Make what computes rotary tables, which holds no weight, anew on a device; None: the default one."""
        self.rotary_emb = LlamaRotaryEmbedding(config=self.config).to(device)
        if self.config.local_layers:
            self.local_rotary_emb = local_rotary(self.config).to(device)

    def rotary_tables(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        """Cosines and sines of rotary positions, and behind them those of local layers, if there are any; None where
        positions are learned. All are [B, T, head size], in the type of the states."""
        if self.config.learned_positions:
            return None
        tables = tuple(self.rotary_emb(hidden_states, position_ids=position_ids))
        if self.config.local_layers:
            tables += tuple(self.local_rotary_emb(hidden_states, position_ids=position_ids))
        return tables

    def placed(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Embedded tokens, multiplied, with their positions added, and the rotary tables; None where positions are
        learned."""
        hidden_states = multiplied_embedding(hidden_states, self.config)
        if self.config.learned_positions:
            return hidden_states + self.embed_positions(position_ids), None
        return hidden_states, self.rotary_tables(hidden_states, position_ids)

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        cache = kwargs.pop("past_key_values", cache)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and cache is None and any(layer.attends for layer in self.layers):
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if cache is None else cache.get_seq_length()
            position_ids = (torch.arange(hidden_states.shape[1], device=hidden_states.device) + seen).unsqueeze(0)
        hidden_states, tables = self.placed(hidden_states, position_ids)
        masks: dict[int | None, torch.Tensor | None] = {}
        layers: list[Any] = list(self.layers)
        entering = hidden_states
        for index, layer in enumerate(layers):
            window = layer.window
            if not layer.config.parallel:
                entering = hidden_states
            if layer.attends and window not in masks:
                common: dict[str, Any] = {
                    "inputs_embeds": hidden_states,
                    "attention_mask": attention_mask,
                    CACHE_NAME: cache,
                    "position_ids": position_ids,
                }
                if window is None:
                    masks[None] = create_causal_mask(config=self.config, **common)
                else:
                    masks[window] = create_sliding_window_causal_mask(config=layer.config, layer_idx=index, **common)
            hidden_states = layer(
                hidden_states,
                entering=entering if layer.config.parallel else None,
                attention_mask=masks.get(window),
                position_embeddings=tables,
                position_ids=position_ids,
                cache=cache,
                **kwargs,
            )
        outputs: dict[str, Any] = {"last_hidden_state": self.norm(hidden_states), CACHE_NAME: cache}
        return BaseModelOutputWithPast(**outputs)


class PuzzleNasForCausalLM(PuzzleNasPreTrainedModel, LlamaForCausalLM):
    """LlamaForCausalLM over PuzzleNasModel."""

    def __init__(self, config: PuzzleNasConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = PuzzleNasModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = LogitHead(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def _supports_default_dynamic_cache(self) -> bool:  # type: ignore[override]
        """Without attention anywhere a token's logits depend on it alone: `generate` still gives a token a step, and
        makes no cache, which without layers could not be asked for its length."""
        return any(layer.attends for layer in self.model.layers)

    def create_masks_for_generate(self, attention_mask: torch.Tensor | None, **kwargs: Any) -> torch.Tensor | None:
        """For static caches transformers makes a mask per layer type, which Llama's forward cannot read. One serves
        all our layers, and the forward makes it."""
        return attention_mask


# Whoever imports this package loads its checkpoints by transformers' Auto classes, without trust_remote_code.
AutoConfig.register(PuzzleNasConfig.model_type, PuzzleNasConfig)
AutoModel.register(PuzzleNasConfig, PuzzleNasModel)
AutoModelForCausalLM.register(PuzzleNasConfig, PuzzleNasForCausalLM)
