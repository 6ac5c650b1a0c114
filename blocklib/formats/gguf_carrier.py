"""Which of llama.cpp's architectures carries a child, and which subblocks and parents none of them can.

| name | children | computes |
|---|---|---|
| `llama`, `qwen2`, `qwen3` | all layers alike, with attention and FFN | the parent's own form, as every tool reads it |
| `deci` | any of a parent without norms of queries and keys | heads, KV heads and FFN width by layer; linear mixers |
| `openelm` | any of a parent with such norms and a tied head | the same, without linear mixers |

A child that multiplies by constants of its own (Granite) has them folded into its weights (`folded.py`), and is carried
like one without; its matrices cannot be rounded before that.

Read from llama.cpp's `src/models/` (those five files) and confirmed by loading each (`tests/test_gguf_cases.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from blocklib.block import SKIP, Architecture, Choice, Parallel, Subblock
from blocklib.errors import UnsupportedFormatError
from blocklib.formats.folded import has_multipliers
from blocklib.formats.reblock import MixerLayer, is_linear
from blocklib.formats.subblocks import width_of
from blocklib.kinds import parent_block
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from blocklib.shape import Shape

ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary scalings that a GGUF file can say exactly."""


@dataclass(frozen=True)
class Carrier:
    """An architecture of llama.cpp. `interleaved`: rotary positions turn neighbouring rows of queries and keys, not
    rows half a head apart. `by_layer`: layers may differ. `fused`: queries, keys and values are one matrix."""

    name: str
    interleaved: bool
    by_layer: bool = False
    fused: bool = False
    attention_everywhere: bool = False


LLAMA, QWEN2, QWEN3 = Carrier("llama", True), Carrier("qwen2", False), Carrier("qwen3", False)
DECI = Carrier("deci", True, by_layer=True)
OPENELM = Carrier("openelm", False, by_layer=True, fused=True, attention_everywhere=True)


def check_gguf(choices: Iterable[Choice], config: PuzzleNasConfig, uniform: bool = False) -> None:
    """Raise UnsupportedFormatError at what no architecture of llama.cpp can carry: a feature of the parent, or the
    first such choice. `uniform`: the child's layers will all be alike, which more parents can have."""
    shape, rotary, choices = own_shape(config), _rotary_type(config), tuple(choices)
    missing = _parent_fault(config, shape, rotary)
    if missing:
        raise UnsupportedFormatError(f"no architecture of llama.cpp carries {missing}; export as hf, which does")
    for choice in choices:
        if isinstance(choice.what, Parallel):
            raise UnsupportedFormatError(
                f"{choice}: no architecture of llama.cpp carries blocks in parallel; export as hf, which does"
            )
        for part in choice.parts:
            if part.precision and has_multipliers(config):
                raise UnsupportedFormatError(
                    f"{choice}: the parent multiplies by constants of its own, which a GGUF file has in its matrices; "
                    "so no part can have a precision of its own: leave out space.precision"
                )
            missing = _choice_fault(part, shape)
            if missing:
                raise UnsupportedFormatError(
                    f"{choice}: no architecture of llama.cpp carries {missing}; export as hf, which does"
                )
        is_tied = shape.tied and not any(each.role == "head" for each in choices)
        only = "" if uniform else _uniform_only(shape, is_tied)
        if only and not _keeps_layers_alike(choice, shape):
            raise UnsupportedFormatError(
                f"{choice}: llama.cpp runs a model with {only} only if all its layers are alike; drop whole blocks, "
                "or export as hf"
            )


def carrier_of(config: PuzzleNasConfig, architecture: Architecture) -> Carrier:
    """The architecture that carries this child. Raises UnsupportedFormatError where none does."""
    choices, shape, rotary = architecture.choices(), own_shape(config), _rotary_type(config)
    uniform = is_uniform(architecture)
    check_gguf(choices, config, uniform)
    if uniform and shape.qk_norm:
        return QWEN3
    if uniform:
        is_qwen2 = shape.qkv_bias and not shape.o_bias and not shape.mlp_bias and rotary != "llama3"
        return QWEN2 if is_qwen2 and shape.heads * shape.head_dim == shape.hidden else LLAMA
    return OPENELM if shape.qk_norm else DECI


def is_uniform(architecture: Architecture) -> bool:
    """Whether all its layers but the empty ones have the same attention and an FFN of the same width. Precisions may
    differ."""
    if any(isinstance(block, Parallel) for block in architecture.blocks):
        return False
    kept = {
        (str(block.attention.unrounded), _width(block.ffn))
        for _, block in architecture.placed()
        if (block.attention, block.ffn) != (SKIP, SKIP)
    }
    return len(kept) == 1 and all(attention.startswith("kv") and width for attention, width in kept)


def kv_heads_of(layer: MixerLayer) -> int:
    """Its KV heads: 0 for a linear mixer or none."""
    if layer.zero_mixer:
        return 1
    if layer.mixer is None or is_linear(layer.mixer):
        return 0
    assert isinstance(layer.mixer.what, Subblock)
    return layer.mixer.what.number


def _width(ffn: Subblock) -> int:
    return width_of(ffn) if ffn.kind in ("ffn", "fuse", "fuse_last") else 0


def _rotary_type(config: PuzzleNasConfig) -> str:
    rope: dict[str, Any] = dict(config.rope_parameters or {})
    return str(rope.get("rope_type") or "default")


def _parent_fault(config: PuzzleNasConfig, shape: Shape, rotary: str) -> str:
    """The reason why no child of this parent can be carried; empty if there is none."""
    if shape.layer_norm or shape.positions or not shape.gated:
        return "the GPT-2 layout with layers of any size"
    if shape.hidden_act != "silu":
        return f"layers of any size whose FFN has activation {shape.hidden_act}, not silu"
    if shape.norms_output:
        return "norms behind attention and FFN with layers of any size"
    if config.unrotated_layers:
        return "layers whose attention has no positions"
    if shape.qk_norm and (shape.o_bias or shape.mlp_bias or shape.qkv_bias):
        return "biases in a model with norms of queries and keys"
    if rotary not in ROTARY:
        return f"rotary embedding of type {rotary!r} (known: {', '.join(ROTARY)})"
    unusual = {"attention_factor", "mscale", "mscale_all_dim", "truncate"} & _set_keys(config)
    if rotary == "yarn" and unusual:
        return f"yarn scaling with {', '.join(sorted(unusual))}"
    if rotary == "llama3" and shape.qk_norm:
        return "llama3 scaling in a model with norms of queries and keys"
    return ""


def _set_keys(config: PuzzleNasConfig) -> set[str]:
    return {name for name, value in dict(config.rope_parameters or {}).items() if value is not None}


def _choice_fault(choice: Choice, shape: Shape) -> str:
    """The reason why this subblock cannot be carried; empty if there is none."""
    subblock = choice.what
    assert isinstance(subblock, Subblock)
    if subblock == SKIP or choice.is_table:
        return ""
    if choice.role == "attention":
        if subblock.kind not in ("kv", "linear"):
            return f"{subblock.kind} attention"
        biased = shape.qkv_bias or shape.o_bias
    else:
        if subblock.kind not in ("ffn", "fuse", "fuse_last", "linear"):
            return f"a {subblock.kind} FFN"
        biased = shape.mlp_bias
    if subblock.kind == "linear" and shape.qk_norm:
        return "a linear subblock in a model with norms of queries and keys"
    return "a linear subblock with a bias" if subblock.kind == "linear" and biased else ""


def _uniform_only(shape: Shape, is_tied: bool) -> str:
    """The features that bind a model to layers that are all alike; empty if there are none."""
    return "norms of queries and keys and an untied head" if shape.qk_norm and not is_tied else ""


def _keeps_layers_alike(choice: Choice, shape: Shape) -> bool:
    """Whether it is the parent's own, an empty block, or around the layers."""
    if choice.is_table:
        return True
    own = parent_block(shape)
    alike = {"attention": own.attention, "ffn": own.ffn}
    whole = [part.unrounded.what for part in choice.parts]
    return whole == [SKIP, SKIP] or whole == [alike[part.role] for part in choice.parts]
