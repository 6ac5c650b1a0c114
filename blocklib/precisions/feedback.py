"""Rounding with error feedback: GPTQ (arXiv 2210.17323, algorithm 1) on blocks that an engine reads."""

import torch
from torch import Tensor

from blocklib.precisions.formats import LevelFormat
from blocklib.precisions.moments import InputMoments
from blocklib.precisions.rounded import Rounded
from blocklib.precisions.scales import best_scales, inverse


def feedback(weight_IO: Tensor, moments: InputMoments, format: LevelFormat) -> Rounded:
    """Rounds input by input, in the moments' order, and moves what is not rounded yet to make up for the error so far.

    A block's scale is chosen when its first input is reached, for the weights as they are moved by then, with each
    error weighed by what it costs after the best making up: the inverse square of the factor's diagonal.
    """
    size = format.numbers
    order_I, factor_II = moments.order_I(size), moments.feedback_II(size)
    moved_IO = weight_IO[order_I]
    rounded = Rounded.empty(format, weight_IO)
    levels_SO, errors_SO = (torch.empty_like(moved_IO[:size]) for _ in range(2))
    for first, inputs_S in zip(range(0, len(moved_IO), size), order_I.view(-1, size), strict=True):
        end = first + size
        block_SO, factor_SS = moved_IO[first:end], factor_II[first:end, first:end]
        scale_O, minimum_O = best_scales(block_SO, factor_SS.diagonal() ** -2, format)
        inverse_O = inverse(scale_O)
        for index, (column_O, factor_S) in enumerate(zip(block_SO, factor_SS, strict=True)):
            level_O, error_O = levels_SO[index], errors_SO[index]
            level_O.copy_(format.nearest((column_O - minimum_O).mul_(inverse_O)))
            torch.addcmul(minimum_O, level_O, scale_O, out=error_O)
            torch.sub(column_O, error_O, out=error_O).div_(factor_S[index])
            block_SO[index + 1 :].addr_(factor_S[index + 1 :], error_O, alpha=-1)
        moved_IO[end:].addmm_(factor_II[first:end, end:].T, errors_SO, alpha=-1)
        rounded.levels_IO[inputs_S] = levels_SO
        block = int(inputs_S[0]) // size
        rounded.scales_NO[block], rounded.minima_NO[block] = scale_O, minimum_O
    return rounded
