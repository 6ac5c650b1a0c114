"""Parent + architecture + library -> child. The only place that puts a model together from parts."""

from collections.abc import Callable

from torch import Tensor

from blocklib.block import Architecture, Choice, Role
from blocklib.kind import Weights
from blocklib.kinds import check
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, child_config, in_type, model_with
from blocklib.tables import EMBEDDING, HEAD

MODULES: dict[Role, tuple[str, ...]] = {
    "attention": ("input_layernorm", "self_attn", "attention_output_norm"),
    "ffn": ("post_attention_layernorm", "mlp", "mlp_output_norm"),
}
"""The modules of a layer that make up each subblock."""


def assemble(
    parent: Parent, architecture: Architecture, weights_of: Callable[[Choice], Weights]
) -> PuzzleNasForCausalLM:
    """The child in the parent's `dtype`: one layer per block; parts the parent has itself come from it, the others from
    `weights_of`, and so do tables that have a precision.

    Tensors that are in that type are shared with the parent and the library, not copied: train a deep copy. Raises
    ValueError where the architecture does not fit the parent.
    """
    return in_type(assemble_stored(parent, architecture, weights_of), parent.dtype)


def assemble_stored(
    parent: Parent, architecture: Architecture, weights_of: Callable[[Choice], Weights]
) -> PuzzleNasForCausalLM:
    """The same with every tensor shared, in the type that it has where it comes from: for a child that is to be read,
    or run by `computing`."""
    parent = parent.at_hand()
    if architecture.layers != parent.shape.layers:
        raise ValueError(f"the architecture spans {architecture.layers} layers; the parent has {parent.shape.layers}")
    weights: dict[str, Tensor] = {
        name: tensor for name, tensor in parent.weights.items() if not name.startswith("model.layers.")
    }
    for index, (layer, block) in enumerate(architecture.placed()):
        for choice in Choice(layer, "block", block).parts:
            check(choice, parent.shape)
            modules = MODULES[choice.role]
            part = parent.stored_weights(layer, modules) if parent.own(choice) else weights_of(choice)
            weights |= {f"model.layers.{index}.{name}": tensor for name, tensor in part.items()}
    for choice in architecture.table_choices():
        weights |= weights_of(choice)
        if choice.role == "tables" and parent.shape.tied:
            weights[HEAD] = weights[EMBEDDING]
    return model_with(child_config(parent.config, architecture, parent.shape), weights)


def parent_part(parent: Parent, layer: int, role: Role) -> Weights:
    """The parent's own tensors of one subblock, by their names inside the layer."""
    return parent.layer_weights(layer, MODULES[role])
