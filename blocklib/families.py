"""Where a model family keeps its parts, as data. A new family of a known layout is a new row.

If its configuration has fields that an export leaves behind, `nas/export/parent_settings.py` says why.

Two layouts, both of pre-norm decoder layers. Llama's: RMS norms, rotary positions, gated FFN. GPT-2's: layer norms,
learned positions, an FFN of two matrices with biases. In OLMo 2's variant of Llama's, the norms of an attention and an
FFN stand behind them; in Gemma 3's, before and behind. Tensors go by Llama's names (`model.layers.N.input_layernorm`,
`self_attn.{q,k,v,o}_proj`, `post_attention_layernorm`, `mlp.{gate,up,down}_proj`); `own_names` renames the others'.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from blocklib.errors import UnsupportedModelError
from blocklib.shape import Shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Family:
    """How one family fills its layout. A string names the configuration attribute that decides.

    `multipliers` are the constants of `MULTIPLIERS` that it multiplies or divides by, and how its configuration gives
    them; `rounds_embedding_multiplier`: that of embedded tokens is rounded first. `activation` is its attribute for
    that of the FFN. `rotary` is its attribute with a flag for each layer, whether queries and keys are turned there;
    "": in all layers. `has_local_layers`: its `layer_types` may be sliding_attention, with positions of their own.
    `norms` is a `norm_placement` of a `Shape`; `zero_centred_norms`: the weight of a norm is stored less 1.
    `gpt`: the layout is GPT-2's. `names` are the beginnings of the family's own tensor names and ours, `#` being a
    layer; `transposed` says that its matrices are stored [in, out], `joint` which are stored as one (`_JOINT`).
    """

    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    joint_qk_norm: bool = False
    norms: str = "before"
    zero_centred_norms: bool = False
    multipliers: Mapping[str, Callable[[Any], float]] = field(default_factory=dict)
    rounds_embedding_multiplier: bool = False
    activation: str = "hidden_act"
    rotary: str = ""
    has_local_layers: bool = False
    gpt: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    transposed: bool = False
    joint: tuple[str, ...] = ()


_JOINT = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Projections that a family may store as one, their outputs one after the other."""

_GPT_NAMES = {
    "transformer.wte.": "model.embed_tokens.",
    "transformer.wpe.": "model.embed_positions.",
    "transformer.ln_f.": "model.norm.",
    "transformer.h.#.ln_1.": "model.layers.#.input_layernorm.",
    "transformer.h.#.ln_2.": "model.layers.#.post_attention_layernorm.",
    "transformer.h.#.mlp.c_fc.": "model.layers.#.mlp.up_proj.",
    "transformer.h.#.mlp.c_proj.": "model.layers.#.mlp.down_proj.",
}
_GPT2_NAMES = _GPT_NAMES | {
    "transformer.h.#.attn.c_attn.": "model.layers.#.self_attn.qkv_proj.",
    "transformer.h.#.attn.c_proj.": "model.layers.#.self_attn.o_proj.",
}
_GPT_NEO_NAMES = _GPT_NAMES | {
    "transformer.h.#.attn.attention.q_proj.": "model.layers.#.self_attn.q_proj.",
    "transformer.h.#.attn.attention.k_proj.": "model.layers.#.self_attn.k_proj.",
    "transformer.h.#.attn.attention.v_proj.": "model.layers.#.self_attn.v_proj.",
    "transformer.h.#.attn.attention.out_proj.": "model.layers.#.self_attn.o_proj.",
}

MULTIPLIERS = ("attention_scale", "embedding_multiplier", "residual_multiplier", "logits_scaling")
"""Constants that `blocklib/model.py` multiplies or divides by, by their names in its configuration."""

# The norm of an attention is our input_layernorm, and that of an FFN our post_attention_layernorm, wherever it stands.
_OLMO2_NAMES = {
    "model.layers.#.post_attention_layernorm.": "model.layers.#.input_layernorm.",
    "model.layers.#.post_feedforward_layernorm.": "model.layers.#.post_attention_layernorm.",
}
_GEMMA3_NAMES = {
    "model.layers.#.post_attention_layernorm.": "model.layers.#.attention_output_norm.",
    "model.layers.#.pre_feedforward_layernorm.": "model.layers.#.post_attention_layernorm.",
    "model.layers.#.post_feedforward_layernorm.": "model.layers.#.mlp_output_norm.",
}

_UNUSUAL = (
    *("scale_attn_by_inverse_layer_idx", "add_cross_attention", "use_bidirectional_attention"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
)
"""Attributes of configurations whose steps `blocklib/model.py` lacks."""

FAMILIES = {
    "llama": Family(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qkv_bias="attention_bias", o_bias="attention_bias", qk_norm=True),
    "gpt2": Family(
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        gpt=True,
        activation="activation_function",
        names=_GPT2_NAMES,
        transposed=True,
        joint=("qkv_proj",),
    ),
    "gpt_neo": Family(o_bias=True, mlp_bias=True, gpt=True, activation="activation_function", names=_GPT_NEO_NAMES),
    "phi3": Family(joint=("qkv_proj", "gate_up_proj")),
    "granite": Family(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        multipliers={"attention_scale": attrgetter("attention_multiplier")}
        | {name: attrgetter(name) for name in MULTIPLIERS[1:]},
    ),
    "olmo2": Family(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        joint_qk_norm=True,
        norms="after",
        names=_OLMO2_NAMES,
    ),
    "smollm3": Family(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias", rotary="no_rope_layers"),
    "gemma3_text": Family(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        norms="around",
        zero_centred_norms=True,
        multipliers={
            "attention_scale": lambda config: config.query_pre_attn_scalar**-0.5,
            "embedding_multiplier": lambda config: config.hidden_size**0.5,
        },
        rounds_embedding_multiplier=True,
        activation="hidden_activation",
        has_local_layers=True,
        names=_GEMMA3_NAMES,
    ),
}


def shape_of(config: Any) -> Shape:
    """The shape of the model a transformers configuration describes.

    Raises UnsupportedModelError, naming the class and the families there are, for any other layout, and for attention
    no parent of ours can have: sliding windows, or a scale that differs by layer.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"{type(config).__name__} (model_type {config.model_type!r}) is not of a supported family; "
            f"supported: {', '.join(sorted(FAMILIES))}"
        )
    _check_attention(config)

    def decided(flag: bool | str) -> bool:
        return bool(getattr(config, flag)) if isinstance(flag, str) else flag

    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", config.num_attention_heads),
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        ffn_width=_width(config),
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        qkv_bias=decided(family.qkv_bias),
        o_bias=decided(family.o_bias),
        mlp_bias=decided(family.mlp_bias),
        qk_norm=family.qk_norm,
        joint_qk_norm=family.joint_qk_norm,
        norm_placement=family.norms,
        local_layers=tuple(_local_layers(config)),
        local_window=config.sliding_window if _local_layers(config) else None,
        hidden_act=getattr(config, family.activation),
        gated=not family.gpt,
        layer_norm=family.gpt,
        positions=config.max_position_embeddings if family.gpt else 0,
    )


def _width(config: Any) -> int:
    width = config.n_inner if config.model_type == "gpt2" else config.intermediate_size
    return int(4 * config.hidden_size if width is None else width)


def unrotated_layers(config: Any) -> list[int]:
    """The layers of a parent whose attention has no positions; `config` may be ours, too."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        return list(config.unrotated_layers)
    flags = getattr(config, family.rotary)[: config.num_hidden_layers] if family.rotary else []
    return [layer for layer, flag in enumerate(flags) if not flag]


def _local_layers(config: Any) -> list[int]:
    """The layers of a parent whose attention sees a window of tokens, with positions of their own."""
    if not FAMILIES[config.model_type].has_local_layers:
        return []
    return [layer for layer, kind in enumerate(config.layer_types) if kind == "sliding_attention"]


def own_settings(config: Any) -> dict[str, Any]:
    """What our configuration says beside a shape of how a parent computes, by its names there; `config` may be ours,
    too."""
    family = FAMILIES.get(config.model_type)
    names = ("rope_parameters", "local_rope_parameters", "zero_centred_norms", "rounds_embedding_multiplier")
    if family is None:
        return {name: getattr(config, name) for name in names} | multipliers(config)
    rope = {"rope_parameters": config.rope_parameters} if hasattr(config, "rope_parameters") else {}
    if family.has_local_layers:
        kinds = config.rope_parameters
        rope = {"rope_parameters": kinds["full_attention"], "local_rope_parameters": kinds["sliding_attention"]}
    flags = {name: getattr(family, name) for name in names[2:]}
    return rope | flags | multipliers(config)


def resized(config: Any, places: Sequence[int], kv_heads: int, ffn_width: int) -> Any:
    """The configuration of the same family with layers of one size, one in place of each of these parent's layers.

    Raises UnsupportedModelError where the family has no other number of KV heads than of heads.
    """
    family, layers = FAMILIES[config.model_type], len(places)
    is_gpt = family.gpt
    if is_gpt and kv_heads != config.num_attention_heads:
        raise UnsupportedModelError(
            f"{kv_heads} KV heads: {type(config).__name__} has as many as heads, {config.num_attention_heads}"
        )
    changed: dict[str, Any] = {"num_hidden_layers": layers}
    changed["n_inner" if config.model_type == "gpt2" else "intermediate_size"] = ffn_width
    if not is_gpt:
        changed["num_key_value_heads"] = kv_heads
    if family.rotary:
        changed[family.rotary] = [getattr(config, family.rotary)[place] for place in places]
    if getattr(config, "layer_types", None) is not None:
        changed["layer_types"] = [config.layer_types[place] for place in places]
    if config.model_type == "gpt_neo":
        changed |= {"attention_types": [[["global"], layers]], "attention_layers": ["global"] * layers}
    found = deepcopy(config)
    for name, value in changed.items():
        setattr(found, name, value)
    return found


def positions_of(config: Any) -> int:
    """How many tokens of a sequence a parent has positions for: learned ones, or what its rotary ones are made for."""
    most, family = int(config.max_position_embeddings), FAMILIES.get(config.model_type)
    if config.local_rope_parameters if family is None else family.has_local_layers:
        return most  # Such a family counts those that scaling stretches them to.
    return scaled_positions(most, getattr(config, "rope_parameters", None) or {})


def scaled_positions(most: int, rope: Mapping[str, Any]) -> int:
    """The length that `most`, a configuration's max_position_embeddings, comes to under RoPE scaling.

    `linear` and `dynamic` stretch it by `factor`; `yarn` stretches `original_max_position_embeddings`; `llama3`,
    `longrope` and `proportional` come with a max_position_embeddings that is the stretched length, unless it is still
    the original one.
    """
    kind, factor = rope.get("rope_type") or rope.get("type") or "default", float(rope.get("factor") or 1.0)
    original = int(rope.get("original_max_position_embeddings") or most)
    if kind == "default":
        return most
    if kind in ("linear", "dynamic"):
        return max(most, int(factor * most))
    return max(most, int(factor * original)) if kind == "yarn" or original >= most else most


def multipliers(config: Any) -> dict[str, float | None]:
    """A parent's constants by the names of `MULTIPLIERS`, those alone that its family has; `config` may be ours, too.

    `attention_scale` is what attention multiplies its scores by; None for the inverse root of the head size.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        return {name: getattr(config, name) for name in MULTIPLIERS}
    scaled = getattr(config, "scale_attn_weights", config.model_type != "gpt_neo")
    return {"attention_scale": None if scaled else 1.0} | {
        ours: float(theirs(config)) for ours, theirs in family.multipliers.items()
    }


def _check_attention(config: Any) -> None:
    name = type(config).__name__
    most = positions_of(config)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    windowed = window is not None and window < most
    if config.model_type == "gpt_neo":
        windowed = "local" in config.attention_layers and config.window_size < most
    elif set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        windowed = True
    if windowed and not FAMILIES[config.model_type].has_local_layers:
        raise UnsupportedModelError(
            f"{name}: a parent with sliding-window attention is not supported; full attention is"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    for each in (rope, *(rope.get(kind) or {} for kind in ("full_attention", "sliding_attention"))):
        if (rotated := each.get("partial_rotary_factor") or 1.0) != 1:
            raise UnsupportedModelError(f"{name}: heads of which a share of {rotated} is rotated are not supported")
    for unusual in _UNUSUAL:
        if getattr(config, unusual, False):
            raise UnsupportedModelError(f"{name}: {unusual} is not supported")


def own_names(model_type: str, weights: "Mapping[str, Tensor]", shape: Shape) -> "dict[str, Tensor]":
    """A checkpoint's tensors under our names, matrices [out, in], joint projections taken apart."""
    family = FAMILIES[model_type]
    outputs = {name: shape.kv_heads * shape.head_dim for name in ("k_proj", "v_proj")}
    outputs |= {"q_proj": shape.heads * shape.head_dim, "gate_proj": shape.ffn_width, "up_proj": shape.ffn_width}
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        ours = _renamed(name, family.names)
        if family.transposed and _is_matrix(ours):
            tensor = tensor.T.contiguous()
        joint = next((joint for joint in family.joint if f".{joint}." in ours), None)
        if joint is None:
            found[ours] = tensor
            continue
        parts = _JOINT[joint]
        for part, piece in zip(parts, tensor.split([outputs[part] for part in parts]), strict=True):
            found[ours.replace(f".{joint}.", f".{part}.")] = piece
    return found


def family_names(model_type: str, weights: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Tensors under our names as a checkpoint of the family holds them. Undoes `own_names`."""
    family = FAMILIES[model_type]
    theirs = {ours: name for name, ours in family.names.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in _with_joint_projections(weights, family.joint).items():
        is_turned = family.transposed and _is_matrix(name)
        found[_renamed(name, theirs)] = tensor.T.contiguous() if is_turned else tensor
    return found


def _with_joint_projections(weights: "Mapping[str, Tensor]", joint: tuple[str, ...]) -> "dict[str, Tensor]":
    import torch  # Reading a configuration needs none.

    found = dict(weights)
    for whole in joint:
        first = f".{_JOINT[whole][0]}."
        for name in [name for name in found if first in name]:
            parts = [found.pop(name.replace(first, f".{part}.")) for part in _JOINT[whole]]
            found[name.replace(first, f".{whole}.")] = torch.cat(parts)
    return found


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for beginning, replacement in names.items():
        pattern = re.escape(beginning).replace(r"\#", r"(\d+)")
        renamed, count = re.subn(f"^{pattern}", replacement.replace("#", r"\1"), name)
        if count:
            return renamed
    return name


def _is_matrix(name: str) -> bool:
    return name.endswith("_proj.weight")
