"""A rounded child that is trained as it is stored: its levels move, on the scales that rounding chose.

K-quants stay as they were rounded: their scales are rounded themselves. So do embedding and head, which no healing
changes; norms and biases, which are not rounded, are trained as ever.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from blocklib.formats.gguf import stored_types
from blocklib.model import PuzzleNasForCausalLM
from blocklib.precisions.formats import FORMATS
from blocklib.precisions.rounded import Rounded
from blocklib.precisions.rounding import CASTS
from blocklib.precisions.straight_through import Cast, KeptScales

_FROZEN = "frozen_in_healing"


@torch.no_grad()
def hold(child: PuzzleNasForCausalLM, stored: Mapping[str, Tensor]) -> None:
    """From now on the child, whose matrices were rounded to `stored`, computes with weights on those scales.

    The full weights that are trained begin as the rounded ones, in the middle of what goes to the same level.
    """
    types = stored_types(child.config, "f32")
    for name, matrix in _matrices(child, stored):
        type = types[name]
        if type in FORMATS:
            rounded = Rounded.unpacked(FORMATS[type], stored[name])
            parametrize.register_parametrization(matrix, "weight", KeptScales(rounded, name))
        elif type in CASTS:
            parametrize.register_parametrization(matrix, "weight", Cast(type, name))
        else:
            setattr(matrix, _FROZEN, ("weight",))


@torch.no_grad()
def settle(child: PuzzleNasForCausalLM, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of a child that `hold` was given as they are now, in the form of `stored`; the child has plain
    weights again, which are the same numbers."""
    found = dict(stored)
    for name, matrix in _matrices(child, stored):
        if parametrize.is_parametrized(matrix, "weight"):
            held = matrix.get_submodule("parametrizations.weight")
            rounding = held.get_submodule("0")
            assert isinstance(rounding, KeptScales | Cast)
            found[name] = rounding.packed_OB(held.get_parameter("original"))
            parametrize.remove_parametrizations(matrix, "weight", leave_parametrized=True)
        else:
            delattr(matrix, _FROZEN)
    return found


def _matrices(child: PuzzleNasForCausalLM, stored: Mapping[str, Tensor]) -> Iterator[tuple[str, nn.Linear]]:
    """Those of layers, with their names in the model."""
    for name in stored:
        if name.startswith("model.layers."):
            matrix = child.get_submodule(name.removesuffix(".weight"))
            assert isinstance(matrix, nn.Linear)
            yield name, matrix
