"""DeciLM (Nemotron-NAS) as sizes: which subblocks its engines run, and how they lie in its layers.

A layer has grouped attention or none, then a gated FFN or none. Knows no weights and no files.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from blocklib.block import SKIP, Architecture, Choice, Parallel, Role, Subblock
from blocklib.errors import UnsupportedFormatError
from blocklib.formats.subblocks import width_of
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape


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


def check_decilm_sizes(choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
    """Raise UnsupportedFormatError at the first choice that a DeciLM of this configuration cannot hold."""
    shape = own_shape(config)
    faults = {
        "learned positions": config.learned_positions,
        "layer norms": config.layer_norm,
        "norms of queries and keys": shape.qk_norm,
        "biases": shape.qkv_bias or shape.o_bias or shape.mlp_bias,
        "FFN without a gate": not shape.gated,
        f"activation {shape.hidden_act}": shape.hidden_act != "silu",
    }
    for fault in (name for name, is_there in faults.items() if is_there):
        raise UnsupportedFormatError(f"the parent: DeciLM has no {fault}")
    for choice in choices:
        if isinstance(choice.what, Parallel):
            raise UnsupportedFormatError(f"{choice}: DeciLM has no blocks in parallel")
        for role, subblock in choice.subblocks:
            carried = ("kv",) if role == "attention" else ("ffn", "fuse", "fuse_last")
            if subblock != SKIP and subblock.kind not in carried:
                what = "attention" if role == "attention" else "FFN"
                raise UnsupportedFormatError(f"{choice}: DeciLM has no {subblock.kind} {what}")
