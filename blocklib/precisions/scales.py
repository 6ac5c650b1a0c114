"""The best scale, and minimum, of one block for given importances of its inputs, on a grid of candidates.

As llama.cpp does for an importance matrix (`make_qx_quants`, `make_qkx3_quants` in `ggml-quants.c`): each candidate
says which levels the numbers take, weighted least squares says the best scale for these levels, and the candidate that
leaves the least error wins. The grids are wider here: they try both signs, and cut off numbers at both ends.
"""

import torch
from torch import Tensor

from blocklib.precisions.formats import LevelFormat, as_float16
from blocklib.precisions.rounded import Rounded

BEYOND = [0.3 * step for step in range(-3, 8)]
"""How far beyond the last level a block's farthest number may come before it is cut to that, in levels."""
BEYOND_BOTH = [(low, high) for low in (-0.4, 0.0, 0.5, 1.0, 1.5) for high in (-0.4, 0.0, 0.5, 1.0, 1.5)]
"""The same for the least and the largest number of a block that has a minimum."""


def best_scales(values_SO: Tensor, importance_S: Tensor, format: LevelFormat) -> tuple[Tensor, Tensor]:
    """The scale and the minimum of the block in each of O rows, float32 numbers of float16, [O] each."""
    if format.has_minimum:
        return _with_minimum(values_SO, importance_S, format)
    scale_O = _scale(values_SO, importance_S, format)
    return scale_O, torch.zeros_like(scale_O)


def diagonal(weight_IO: Tensor, importance_I: Tensor, format: LevelFormat) -> Rounded:
    """Each block for itself: the scale that importances ask for, and each number to the level nearest to it."""
    rounded, size = Rounded.empty(format, weight_IO), format.numbers
    for block, (values_SO, importance_S) in enumerate(
        zip(weight_IO.split(size), importance_I.split(size), strict=True)
    ):
        scale_O, minimum_O = best_scales(values_SO, importance_S, format)
        rounded.levels_NSO[block] = format.nearest((values_SO - minimum_O).mul_(inverse(scale_O)))
        rounded.scales_NO[block], rounded.minima_NO[block] = scale_O, minimum_O
    return rounded


def inverse(numbers: Tensor) -> Tensor:
    """1 over each number, and 0 of a number that llama.cpp takes for zero (`GROUP_MAX_EPS`)."""
    return torch.where(numbers.abs() < 1e-15, 0, 1 / numbers)


def _scale(values_SO: Tensor, importance_S: Tensor, format: LevelFormat) -> Tensor:
    farthest_O = values_SO.gather(0, values_SO.abs().argmax(0, keepdim=True))[0]
    if not format.has_sign:
        farthest_O = -farthest_O.abs()
    inverse_O, weighted_SO = inverse(farthest_O), values_SO * importance_S[:, None]
    best_O, scale_O = torch.zeros_like(farthest_O), farthest_O / format.least
    for target in _targets(format):
        levels_SO = format.nearest(values_SO * (inverse_O * target))
        product_O = (weighted_SO * levels_SO).sum(0)
        fitted_O = product_O / (importance_S @ levels_SO.square_())
        gain_O = product_O * fitted_O
        better_O = gain_O > best_O
        best_O = torch.where(better_O, gain_O, best_O)
        scale_O = torch.where(better_O, fitted_O, scale_O)
    return format.as_scale(scale_O)


def _targets(format: LevelFormat) -> list[float]:
    """What the number farthest from zero may become in the levels' unit, of either sign; where scales are positive, it
    is taken for negative, and so are all of these."""
    levels: tuple[float, ...] = format.levels
    first, second, *_, last_but_one, last = levels[levels.index(format.least) :]
    low = [first - beyond * (second - first) for beyond in BEYOND]
    high = [last + beyond * (last - last_but_one) for beyond in BEYOND]
    return low + (high if format.has_sign else [-target for target in high])


def _with_minimum(values_SO: Tensor, importance_S: Tensor, format: LevelFormat) -> tuple[Tensor, Tensor]:
    last, least_O = format.levels[-1], values_SO.amin(0)
    shifted_SO, span_O = values_SO - least_O, values_SO.amax(0) - least_O
    total, weighted_SO = importance_S.sum(), shifted_SO * importance_S[:, None]
    mean_O, inverse_O = weighted_SO.sum(0) / total, inverse(span_O)
    best_O, scale_O, minimum_O = torch.zeros_like(least_O), span_O / last, torch.zeros_like(least_O)
    for low, high in BEYOND_BOTH:
        levels_SO = format.nearest((shifted_SO * (inverse_O * (last + low + high))).sub_(low))
        level_O = importance_S @ levels_SO / total
        covariance_O = (weighted_SO * levels_SO).sum(0) - total * mean_O * level_O
        fitted_O = covariance_O / (importance_S @ levels_SO.square_() - total * level_O.square())
        gain_O = covariance_O * fitted_O
        better_O = gain_O > best_O
        best_O = torch.where(better_O, gain_O, best_O)
        scale_O = torch.where(better_O, fitted_O, scale_O)
        minimum_O = torch.where(better_O, mean_O - fitted_O * level_O, minimum_O)
    return as_float16(scale_O), as_float16(minimum_O + least_O)
