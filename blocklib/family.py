"""Where a model family keeps its parts, as data. Adding a family of Llama layout is adding a row.

Knows configurations only. Which tensors there are follows from the layout, which all rows share: pre-norm decoder
layers, `model.layers.N`, of `input_layernorm`, `self_attn.{q,k,v,o}_proj`, `post_attention_layernorm` and
`mlp.{gate,up,down}_proj`.
"""

from dataclasses import dataclass
from typing import Any

from blocklib.shape import Shape


class UnsupportedModel(ValueError):
    """A model whose layout this package cannot take apart."""


@dataclass(frozen=True)
class Family:
    """How one family fills the Llama layout. A string names the configuration attribute that decides."""

    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False


FAMILIES = {
    "llama": Family(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qkv_bias="attention_bias", o_bias="attention_bias", qk_norm=True),
}


def shape_of(config: Any) -> Shape:
    """The shape of the model a transformers configuration describes.

    Raises UnsupportedModel, naming the class and the families there are, for any layout but Llama's, and for
    sliding-window attention, which this layout does not carry.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedModel(
            f"{type(config).__name__} (model_type {config.model_type!r}) is not of a supported family; "
            f"supported: {', '.join(sorted(FAMILIES))}"
        )
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    if windowed or set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise UnsupportedModel(f"{type(config).__name__}: sliding-window attention is not supported; full attention is")

    def decided(flag: bool | str) -> bool:
        return bool(getattr(config, flag)) if isinstance(flag, str) else flag

    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        ffn_width=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        qkv_bias=decided(family.qkv_bias),
        o_bias=decided(family.o_bias),
        mlp_bias=decided(family.mlp_bias),
        qk_norm=family.qk_norm,
    )
