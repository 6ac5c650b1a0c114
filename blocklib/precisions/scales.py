"""The best scale, and minimum, of one block for given importances of its inputs, on a grid of candidates.

As llama.cpp does for an importance matrix (`make_qx_quants`, `make_qkx3_quants` in `ggml-quants.c`): each candidate
says which levels the numbers take, weighted least squares says the best scale for these levels, and the candidate that
leaves the least error wins.
"""

import torch
from torch import Tensor

from blocklib.precisions.formats import BlockFormat
from blocklib.precisions.rounded import Rounded, as_float16

TARGETS = 9
STEP = 0.1


def best_scales(values_SO: Tensor, importance_S: Tensor, format: BlockFormat) -> tuple[Tensor, Tensor]:
    """The scale and the minimum of the block in each of O rows, float32 numbers of float16, [O] each."""
    weighted_SO = values_SO * importance_S[:, None]
    if format.has_minimum:
        return _with_minimum(values_SO, weighted_SO, importance_S, format)
    scale_O = _scale(values_SO, weighted_SO, importance_S, format)
    return as_float16(scale_O), torch.zeros_like(scale_O)


def _scale(values_SO: Tensor, weighted_SO: Tensor, importance_S: Tensor, format: BlockFormat) -> Tensor:
    extreme_O = values_SO.gather(0, values_SO.abs().argmax(0, keepdim=True))[0]
    inverse_O = inverse(extreme_O)
    best_O = torch.zeros_like(extreme_O)
    scale_O = extreme_O / format.levels[0]
    for target in _targets(format):
        levels_SO = format.nearest(values_SO * (inverse_O * target))
        product_O = (weighted_SO * levels_SO).sum(0)
        square_O = importance_S @ (levels_SO * levels_SO)
        fitted_O = product_O / square_O
        gain_O = product_O * fitted_O
        better_O = gain_O > best_O
        best_O = torch.where(better_O, gain_O, best_O)
        scale_O = torch.where(better_O, fitted_O, scale_O)
    return scale_O


def _targets(format: BlockFormat) -> list[float]:
    """The levels, and what lies a little before and after them, that the number farthest from zero may come to."""
    steps = [STEP * step for step in range(-TARGETS, TARGETS + 1)]
    return [format.least + step for step in steps] + [format.levels[-1] + step for step in steps]


def _with_minimum(
    values_SO: Tensor, weighted_SO: Tensor, importance_S: Tensor, format: BlockFormat
) -> tuple[Tensor, Tensor]:
    least_O, span_O = values_SO.amin(0), values_SO.amax(0) - values_SO.amin(0)
    shifted_SO = values_SO - least_O
    inverse_O = inverse(span_O)
    total, sum_O = importance_S.sum(), weighted_SO.sum(0)
    best_O = torch.zeros_like(least_O)
    scale_O, minimum_O = span_O / format.levels[-1], least_O
    for step in range(-TARGETS, TARGETS + 1):
        levels_SO = format.nearest(shifted_SO * (inverse_O * (format.levels[-1] + STEP * step)))
        level_O = importance_S @ levels_SO / total
        covariance_O = (weighted_SO * levels_SO).sum(0) - sum_O * level_O
        variance_O = importance_S @ (levels_SO * levels_SO) - total * level_O * level_O
        fitted_O = covariance_O / variance_O
        gain_O = covariance_O * fitted_O
        better_O = gain_O > best_O
        best_O = torch.where(better_O, gain_O, best_O)
        scale_O = torch.where(better_O, fitted_O, scale_O)
        minimum_O = torch.where(better_O, sum_O / total - fitted_O * level_O, minimum_O)
    return as_float16(scale_O), as_float16(minimum_O)


def inverse(numbers: Tensor) -> Tensor:
    """1 over each number, and 0 of a number that llama.cpp takes for zero (`GROUP_MAX_EPS`)."""
    return torch.where(numbers.abs() < 1e-15, 0, 1 / numbers)


def diagonal(weight_IO: Tensor, importance_I: Tensor, format: BlockFormat) -> Rounded:
    """Each block for itself: the scale that importances ask for, and each number to the level nearest to it."""
    levels, scales, minima = [], [], []
    for values_SO, importance_S in zip(weight_IO.split(32), importance_I.split(32), strict=True):
        scale_O, minimum_O = best_scales(values_SO, importance_S, format)
        levels.append(format.nearest((values_SO - minimum_O) * inverse(scale_O)))
        scales.append(scale_O)
        minima.append(minimum_O)
    return Rounded(format, torch.cat(levels), torch.stack(scales), torch.stack(minima))
