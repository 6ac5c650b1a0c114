"""Subblocks and tables in their precision: the type of each matrix, the rounding of all of them, and back to floats.

The type is the one that the matrix has in a GGUF file (`blocklib/formats/gguf_types.py`). Vectors stay as they are.
"""

from collections.abc import Mapping

from gguf import GGMLQuantizationType as Type
from torch import Tensor

from blocklib.block import Choice
from blocklib.formats.gguf_types import tensor_type
from blocklib.formats.subblocks import tensor_shapes
from blocklib.kind import Weights
from blocklib.precisions.moments import InputMoments
from blocklib.precisions.rounding import How, round_matrix, unpacked
from blocklib.shape import Shape
from blocklib.tables import table_names

_FINE = (Type.Q8_0, Type.Q6_K)
"""Types so fine that plain rounding loses next to nothing; the search for better levels would take longest there."""


def matrix_types(part: Choice, shape: Shape) -> dict[str, Type]:
    """The type of every matrix of a part that has a precision, by its name in a layer, or in the model for tables."""
    assert part.precision, f"{part} has no precision"
    if part.is_table:
        names = table_names(part.role, shape.tied)
        sizes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (shape.vocabulary, shape.hidden))
    else:
        sizes = tensor_shapes(part, shape)
    return {name: tensor_type(size, part.precision) for name, size in sizes.items() if len(size) > 1}


def round_part(
    part: Choice, weights: Weights, moments: Mapping[str, InputMoments], shape: Shape, how: How = "refit"
) -> dict[str, Tensor]:
    """The tensors of a part with its matrices rounded: uint8 [outputs, bytes of a row], as they lie in a file.

    `moments` are those of the inputs of each matrix. Raises as `round_matrix` does, naming part and tensor.
    """
    types = matrix_types(part, shape)

    def rounded(name: str, tensor: Tensor) -> Tensor:
        way: How = "plain" if types[name] in _FINE else how
        return round_matrix(tensor, types[name], moments.get(name), way, f"{part}: {name}")

    return {name: rounded(name, tensor) if name in types else tensor for name, tensor in weights.items()}


def as_floats(part: Choice, stored: Weights, shape: Shape) -> dict[str, Tensor]:
    """The tensors that `round_part` returned, as the engine reads them, in float32."""
    types = matrix_types(part, shape)
    return {name: unpacked(tensor, types[name]) if name in types else tensor for name, tensor in stored.items()}
