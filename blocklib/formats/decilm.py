"""DeciLM (Nemotron-NAS) as sizes: which subblocks its engines run, and how they lie in its layers.

A layer has grouped attention or none, then a gated FFN or none. Knows no weights and no files.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from blocklib.block import SKIP, Architecture, Choice, Parallel, Role, Subblock
from blocklib.errors import UnsupportedFormatError
from blocklib.formats.folded import has_multipliers
from blocklib.formats.subblocks import width_of
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from blocklib.shape import Shape


@dataclass(frozen=True)
class DeciLayer:
    """The sizes of a layer; None for a part that it does not have."""

    kv_heads: int | None = None
    ffn_width: int | None = None


def decilm_layers(architecture: Architecture) -> tuple[DeciLayer, ...]:
    """The subblocks in as few layers as possible. vLLM runs no first layer without attention, so such a layer gets one
    KV head, whose weights would be zeros."""
    layers = [DeciLayer()]
    for choice in architecture.choices():
        for role, subblock in choice.subblocks:
            if subblock != SKIP:
                _put(layers, role, subblock)
    return (DeciLayer(layers[0].kv_heads or 1, layers[0].ffn_width), *layers[1:])


def _put(layers: list[DeciLayer], role: Role, subblock: Subblock) -> None:
    """Add a subblock to the last layer, or to a new one if its place there is past."""
    last = layers[-1]
    if role == "attention":
        if last != DeciLayer():
            layers.append(DeciLayer())
        layers[-1] = DeciLayer(kv_heads=subblock.number)
    elif last.ffn_width is None:
        layers[-1] = DeciLayer(last.kv_heads, width_of(subblock))
    else:
        layers.append(DeciLayer(ffn_width=width_of(subblock)))


def check_decilm(choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
    """Raise UnsupportedFormatError at the first choice that no DeciLM engine runs in a child of this configuration."""
    shape = own_shape(config)
    absent = {
        "learned positions": config.learned_positions,
        "layer norms": config.layer_norm,
        "norms behind attention and FFN": shape.norms_output,
        "multipliers of embedding, attention, residual or logits": has_multipliers(config),
        "layers whose attention has no positions": bool(config.unrotated_layers),
    }
    for what, is_there in absent.items():
        if is_there:
            raise UnsupportedFormatError(f"the parent: DeciLM engines have no {what}")
    for choice in choices:
        faults = [_fault(role, subblock, shape) for role, subblock in choice.subblocks if subblock != SKIP]
        missing = "blocks in parallel" if isinstance(choice.what, Parallel) else next(filter(None, faults), None)
        if missing:
            raise UnsupportedFormatError(f"{choice}: DeciLM engines have no {missing}")


def _fault(role: Role, subblock: Subblock, shape: Shape) -> str | None:
    """The part of the subblock that the format cannot express."""
    if role == "attention":
        faults = {
            f"{subblock.kind} attention": subblock.kind != "kv",
            "norms of queries and keys": shape.qk_norm,
            # vLLM would read them; TensorRT-LLM would drop them without an error.
            "biases in attention that all of them read": shape.qkv_bias or shape.o_bias,
        }
    else:
        faults = {
            f"{subblock.kind} FFN": subblock.kind not in ("ffn", "fuse", "fuse_last"),
            "FFN without a gate": not shape.gated,
            "biases in the FFN that all of them read": shape.mlp_bias,
            f"activation but silu, and this FFN's is {shape.hidden_act}": shape.hidden_act != "silu",
        }
    return next((what for what, is_there in faults.items() if is_there), None)
