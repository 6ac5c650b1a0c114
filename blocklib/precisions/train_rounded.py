"""A rounded child that is trained as it is stored: its levels move, on the scales that rounding chose.

K-quants stay as they were rounded: their scales are rounded themselves. So do embedding and head, which no healing
changes; norms and biases, which are not rounded, are trained as ever.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from blocklib.formats.gguf import stored_types
from blocklib.model import PuzzleNasForCausalLM
from blocklib.precisions.formats import MatrixType, level_format
from blocklib.precisions.rounded import Rounded
from blocklib.precisions.rounding import CASTS
from blocklib.precisions.straight_through import Cast, KeptScales

_FROZEN = "frozen_in_healing"


@torch.no_grad()
def hold(child: PuzzleNasForCausalLM, stored: Mapping[str, Tensor]) -> None:
    """From now on the child, whose matrices were rounded to `stored`, computes with weights on those scales.

    The full weights that are trained begin as the rounded ones, in the middle of what goes to the same level.
    """
    for name in hold_matrices(child, _of_layers(stored), stored_types(child.config, "f32")):
        setattr(child.get_submodule(_module(name)), _FROZEN, ("weight",))


@torch.no_grad()
def settle(child: PuzzleNasForCausalLM, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of a child that `hold` was given as they are now, in the form of `stored`; the child has plain
    weights again, which are the same numbers."""
    held = _of_layers(stored)
    for name in held:
        matrix = child.get_submodule(_module(name))
        if hasattr(matrix, _FROZEN):
            delattr(matrix, _FROZEN)
    return {**stored, **settle_matrices(child, held)}


@torch.no_grad()
def hold_matrices(module: nn.Module, stored: Mapping[str, Tensor], types: Mapping[str, MatrixType]) -> list[str]:
    """From now on these matrices of a module, by the names of their weights, compute as `hold` says. Returns the names
    of those whose type has no scales to stay on: nothing is changed in them."""
    others = []
    for name, packed_OB in stored.items():
        matrix, type = module.get_submodule(_module(name)), types[name]
        if type in CASTS:
            rounding: nn.Module = Cast(type, name)
        elif (format := level_format(type)) is not None:
            rounding = KeptScales(Rounded.unpacked(format, packed_OB), name)
        else:
            others.append(name)
            continue
        parametrize.register_parametrization(matrix, "weight", rounding)
    return others


@torch.no_grad()
def settle_matrices(module: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices that `hold_matrices` was given as they are now, as `settle` says."""
    found = dict(stored)
    for name in stored:
        matrix = module.get_submodule(_module(name))
        if parametrize.is_parametrized(matrix, "weight"):
            held = matrix.get_submodule("parametrizations.weight")
            rounding = held.get_submodule("0")
            assert isinstance(rounding, KeptScales | Cast)
            found[name] = rounding.packed_OB(held.get_parameter("original"))
            parametrize.remove_parametrizations(matrix, "weight", leave_parametrized=True)
    return found


def _of_layers(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in stored.items() if name.startswith("model.layers.")}


def _module(name: str) -> str:
    return name.removesuffix(".weight")
