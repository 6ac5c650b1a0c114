"""A child whose layers are stored in the formats of compressed-tensors: its weights as an engine reads them, and as
they lie in a file.

A subblock with a precision of its own has that one. Embedding, head and norms stay in the type of the child.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blocklib.block import SKIP, Architecture, Choice, Subblock
from blocklib.formats.compressed_config import quantization_config
from blocklib.formats.compressed_types import COMPRESSED, CompressedFormat, tensors_of_matrix
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.parent import model_with, own_shape
from blocklib.precisions.parts import matrix_types
from blocklib.precisions.rounding import round_matrix
from blocklib.shape import Shape


@dataclass(frozen=True, eq=False)
class CompressedChild:
    """`model` has the weights that the formats leave. `formats` are those of its matrices, and `rows` the matrices as
    bytes, uint8 [outputs, bytes of a row], both by their names in the child."""

    model: PuzzleNasForCausalLM
    formats: Mapping[str, CompressedFormat]
    rows: Mapping[str, Tensor]

    def tensors(self, held: Mapping[str, Tensor], own: Mapping[str, str]) -> dict[str, Tensor]:
        """The tensors of a file that would otherwise hold `held`. `own` are the child's names of the matrices of its
        layers, by their names in the file."""
        found: dict[str, Tensor] = {}
        for name, tensor in held.items():
            format = self.formats.get(own.get(name, ""))
            found |= {name: tensor} if format is None else tensors_of_matrix(name, self.rows[own[name]], format)
        return found

    def config(self, own: Mapping[str, str]) -> dict[str, Any]:
        """The `quantization_config` of such a file."""
        return quantization_config({name: self.formats.get(of) for name, of in own.items()})


@torch.no_grad()
def compressed_child(
    child: PuzzleNasForCausalLM, precision: str = "", stored: Mapping[str, Tensor] | None = None
) -> CompressedChild:
    """The child with each matrix of a subblock in the subblock's precision, or in `precision` where it has none of its
    own; "": in the type of the child. `stored` are matrices that are rounded already, by their names in the child; the
    others are rounded plainly.

    Raises UnsupportedFormatError for rows without whole groups, and NotFiniteError, both naming the matrix.
    """
    formats = compressed_formats(child.config, precision)
    weights, there = dict(child.state_dict()), stored or {}
    rows = {
        name: there[name] if name in there else round_matrix(weights[name], format, how="plain", name=name)
        for name, format in formats.items()
    }
    weights |= {name: formats[name].unpack(packed_OB) for name, packed_OB in rows.items()}
    return CompressedChild(model_with(child.config, weights), formats, rows)


def compressed_formats(config: PuzzleNasConfig, precision: str = "") -> dict[str, CompressedFormat]:
    """The format of every matrix of the layers that is in one, by its name in the child."""
    shape = own_shape(config)
    found: dict[str, CompressedFormat] = {}
    for index, (layer, block) in enumerate(Architecture.parse(config.architecture).placed()):
        for part in Choice(layer, "block", block).parts:
            of_part = part_formats(part, shape, precision)
            found |= {f"model.layers.{index}.{name}": format for name, format in of_part.items()}
    return found


def part_formats(part: Choice, shape: Shape, precision: str = "") -> dict[str, CompressedFormat]:
    """The format of every matrix of a subblock, by its name in a layer; empty where they are in none."""
    assert isinstance(part.what, Subblock)
    asked = part.precision or precision
    if part.what == SKIP or asked not in COMPRESSED:
        return {}
    types = matrix_types(replace(part, what=part.what.at(asked)), shape)
    return {name: type for name, type in types.items() if isinstance(type, CompressedFormat)}
