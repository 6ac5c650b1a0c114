"""A child as one ordered list of subblocks, which exports to foreign formats group into layers.

A decoder adds one subblock after the other to the residual, so how they are grouped into layers changes nothing but
names. Knows no format.
"""

from dataclasses import dataclass

from torch import Tensor

from blocklib.assemble import MODULES
from blocklib.block import SKIP, Architecture, Choice, Role, Subblock
from blocklib.model import PuzzleNasForCausalLM


@dataclass(frozen=True)
class Placed:
    """A subblock with weights: its place in the parent, and its tensors by their names in a layer."""

    choice: Choice
    weights: dict[str, Tensor]

    @property
    def role(self) -> Role:
        return self.choice.role

    @property
    def subblock(self) -> Subblock:
        assert isinstance(self.choice.what, Subblock)
        return self.choice.what


@dataclass(frozen=True)
class Layer:
    """A decoder layer to write: an attention, then an FFN; either may be absent."""

    attention: dict[str, Tensor] | None = None
    ffn: dict[str, Tensor] | None = None


def subblocks_of(child: PuzzleNasForCausalLM) -> tuple[Placed, ...]:
    """The child's subblocks in the order they run, empty slots left out."""
    architecture = Architecture.parse(child.config.architecture)
    found = []
    for (start, block), layer in zip(architecture.placed(), child.model.layers, strict=True):
        state = layer.state_dict()
        for part in Choice(start, "block", block).parts:
            if part.what != SKIP:
                own = {name: tensor for name, tensor in state.items() if name.split(".")[0] in MODULES[part.role]}
                found.append(Placed(part, own))
    return tuple(found)


def repack(stream: tuple[Placed, ...]) -> tuple[Layer, ...]:
    """The list in as few layers as possible, at least one: `kv8+skip skip+skip skip+ffn512` becomes one layer."""
    layers = [Layer()]
    for placed in stream:
        last = layers[-1]
        if placed.role == "attention":
            if last.attention is not None or last.ffn is not None:
                layers.append(Layer())
            layers[-1] = Layer(attention=placed.weights)
        elif last.ffn is None:
            layers[-1] = Layer(last.attention, placed.weights)
        else:
            layers.append(Layer(ffn=placed.weights))
    return tuple(layers)
