"""A stream of subblocks regrouped into layers that llama.cpp runs: a mixer, then an FFN. Knows no weights.

A mixer is attention, or a linear map, which llama.cpp has only in the attention's place. Empty slots vanish, so blocks
without anything are dropped. A linear FFN is the mixer of a layer of its own. llama.cpp drops a mixer without an FFN
silently (`if (n_ff == 0) continue;` comes before the residual is added), so such a layer gets an FFN of zeros. It reads
the head size from the first layer, so that one gets an attention of zeros if it has none. A child without attention
anywhere has it in the first layer, or in one before. Subblocks of zeros add exactly nothing to the residual.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from blocklib.block import SKIP, Choice, Subblock

ONE_HEAD = Subblock("kv", "1")
"""The attention of zeros: one query head and one KV head."""


@dataclass(frozen=True)
class MixerLayer:
    """A layer of a GGUF file. None stands for zeros where `zero_mixer` or `zero_width` say so, else for nothing."""

    mixer: Choice | None = None
    ffn: Choice | None = None
    zero_mixer: bool = False
    zero_width: int = 0


@dataclass(frozen=True)
class Needs:
    """Parts that an architecture of llama.cpp needs: FFNs everywhere, attention in every layer or in the first; and the
    width of an FFN of zeros, a multiple of the block of the file's type."""

    zero_width: int
    attention_everywhere: bool = False


def reblock(choices: Iterable[Choice], needs: Needs) -> tuple[MixerLayer, ...]:
    """The subblocks in as few layers as possible, at least one, zeros added where llama.cpp needs them."""
    layers = _packed(choices)
    if all(layer.mixer is None or is_linear(layer.mixer) for layer in layers) and (not layers or layers[0].mixer):
        # llama.cpp makes no cache without keys and values, and then does not start.
        layers.insert(0, MixerLayer())
    return tuple(
        replace(
            layer,
            zero_mixer=layer.mixer is None and (needs.attention_everywhere or index == 0),
            zero_width=needs.zero_width if layer.ffn is None else 0,
        )
        for index, layer in enumerate(layers)
    )


def is_linear(choice: Choice | None) -> bool:
    """Whether it is a linear map, in the slot of an attention or of an FFN."""
    return choice is not None and isinstance(choice.what, Subblock) and choice.what.kind == "linear"


def _packed(choices: Iterable[Choice]) -> list[MixerLayer]:
    layers: list[MixerLayer] = []
    for choice in choices:
        if choice.what == SKIP:
            continue
        if choice.role == "attention" or is_linear(choice):
            layers.append(MixerLayer(mixer=choice))
        elif layers and layers[-1].ffn is None:
            layers[-1] = replace(layers[-1], ffn=choice)
        else:
            layers.append(MixerLayer(ffn=choice))
    return layers
