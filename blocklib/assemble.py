"""Parent + architecture + library -> child. The only place that puts a model together from parts."""

from collections.abc import Callable

from torch import Tensor

from blocklib.block import Architecture, Choice, Role
from blocklib.kind import Weights
from blocklib.kinds import check
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, child_config, model_with
from blocklib.tables import EMBEDDING, HEAD

MODULES: dict[Role, tuple[str, ...]] = {
    "attention": ("input_layernorm", "self_attn"),
    "ffn": ("post_attention_layernorm", "mlp"),
}
"""The modules of a layer that make up each subblock."""


def assemble(
    parent: Parent, architecture: Architecture, weights_of: Callable[[Choice], Weights]
) -> PuzzleNasForCausalLM:
    """The child: one layer per block; parts the parent has itself come from it, the others from `weights_of`, and so do
    tables that have a precision.

    Tensors are shared with the parent and the library, not copied: train a deep copy. Raises ValueError where the
    architecture does not fit the parent.
    """
    if architecture.layers != parent.shape.layers:
        raise ValueError(f"the architecture spans {architecture.layers} layers; the parent has {parent.shape.layers}")
    weights: dict[str, Tensor] = {
        name: parent.tensor(name) for name in parent.weights if not name.startswith("model.layers.")
    }
    for index, (layer, block) in enumerate(architecture.placed()):
        for choice in Choice(layer, "block", block).parts:
            check(choice, parent.shape)
            part = parent_part(parent, layer, choice.role) if parent.own(choice) else weights_of(choice)
            weights |= {f"model.layers.{index}.{name}": tensor for name, tensor in part.items()}
    for choice in architecture.table_choices():
        weights |= weights_of(choice)
        if choice.role == "tables" and parent.shape.tied:
            weights[HEAD] = weights[EMBEDDING]
    return model_with(child_config(parent.config, architecture, parent.shape), weights)


def parent_part(parent: Parent, layer: int, role: Role) -> Weights:
    """The parent's own tensors of one subblock, by their names inside the layer."""
    return parent.layer_weights(layer, MODULES[role])
