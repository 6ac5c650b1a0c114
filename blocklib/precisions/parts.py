"""Subblocks and tables in their precision: the type of each matrix, the rounding of all of them, and back to floats.

The type is the one that the matrix has in a file: a GGUF file (`blocklib/formats/gguf_types.py`), or a folder that vLLM
loads (`blocklib/formats/compressed_types.py`). Vectors stay as they are.
"""

from collections.abc import Mapping

from torch import Tensor

from blocklib.block import Architecture, Choice
from blocklib.errors import UnsupportedFormatError
from blocklib.formats.compressed_types import COMPRESSED, compressed_format
from blocklib.formats.gguf_types import tensor_type
from blocklib.formats.subblocks import tensor_shapes
from blocklib.kind import Weights
from blocklib.precisions.formats import MatrixType
from blocklib.precisions.moments import InputMoments
from blocklib.precisions.rounding import How, round_matrix, unpacked
from blocklib.shape import Shape
from blocklib.tables import table_names

_FINE = ("Q8_0", "Q6_K", "fp8")
"""Types so fine that plain rounding loses next to nothing; the search for better levels would take longest there."""


def matrix_types(part: Choice, shape: Shape) -> dict[str, MatrixType]:
    """The type of every matrix of a part that has a precision, by its name in a layer, or in the model for tables.
    Raises UnsupportedFormatError, naming the matrix, where a row has no whole groups."""
    assert part.precision, f"{part} has no precision"
    if part.is_table:
        names = table_names(part.role, shape.tied)
        sizes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (shape.vocabulary, shape.hidden))
    else:
        sizes = tensor_shapes(part, shape)
    found = {}
    for name, size in sizes.items():
        try:
            if len(size) > 1:
                found[name] = matrix_type(size, part.precision)
        except UnsupportedFormatError as error:
            raise UnsupportedFormatError(f"{part}: {name}: {error}") from error
    return found


def matrix_type(size: tuple[int, ...], precision: str) -> MatrixType:
    """The type of a matrix [outputs, inputs] in that precision."""
    if precision in COMPRESSED:
        return compressed_format(precision, size[-1])
    return tensor_type(size, precision)


def rounded_types(architecture: Architecture, shape: Shape) -> dict[str, MatrixType]:
    """The type of every matrix of a child that has a precision of its own, by its name in the child."""
    found: dict[str, MatrixType] = {}
    for table in architecture.table_choices():
        found |= matrix_types(table, shape)
    for index, (layer, block) in enumerate(architecture.placed()):
        for part in Choice(layer, "block", block).parts:
            if part.precision:
                of_part = matrix_types(part, shape)
                found |= {f"model.layers.{index}.{name}": type for name, type in of_part.items()}
    return found


def round_part(
    part: Choice, weights: Weights, moments: Mapping[str, InputMoments], shape: Shape, how: How = "refit"
) -> dict[str, Tensor]:
    """The tensors of a part with its matrices rounded: uint8 [outputs, bytes of a row], as they lie in a file.

    `moments` are those of the inputs of each matrix. Raises as `round_matrix` does, naming part and tensor.
    """
    types = matrix_types(part, shape)

    def rounded(name: str, tensor: Tensor) -> Tensor:
        way: How = "plain" if types[name].name in _FINE else how
        return round_matrix(tensor, types[name], moments.get(name), way, f"{part}: {name}")

    return {name: rounded(name, tensor) if name in types else tensor for name, tensor in weights.items()}


def as_floats(part: Choice, stored: Weights, shape: Shape) -> dict[str, Tensor]:
    """The tensors that `round_part` returned, as the engine reads them, in float32."""
    types = matrix_types(part, shape)
    return {name: unpacked(tensor, types[name]) if name in types else tensor for name, tensor in stored.items()}
