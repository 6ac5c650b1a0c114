"""Rounding with error feedback: GPTQ (arXiv 2210.17323, algorithm 1) on blocks that llama.cpp reads."""

import torch
from torch import Tensor

from blocklib.precisions.formats import BlockFormat
from blocklib.precisions.moments import InputMoments
from blocklib.precisions.rounded import Rounded
from blocklib.precisions.scales import best_scales, inverse


def feedback(weight_IO: Tensor, moments: InputMoments, format: BlockFormat) -> Rounded:
    """Rounds input by input, and moves what is not rounded yet so that it makes up for the error so far.

    A block's scale is chosen when its first input is reached, for the weights as they are moved by then.
    """
    moved_IO, factor_II = weight_IO.clone(), moments.feedback_II
    levels_IO, errors_SO = torch.empty_like(moved_IO), torch.empty_like(moved_IO[: format.numbers])
    scales, minima = [], []
    for first in range(0, len(moved_IO), format.numbers):
        end = first + format.numbers
        block_SO, factor_SS = moved_IO[first:end], factor_II[first:end, first:end]
        scale_O, minimum_O = best_scales(block_SO, factor_SS.diagonal() ** -2, format)
        inverse_O = inverse(scale_O)
        for index, (column_O, factor_S) in enumerate(zip(block_SO, factor_SS, strict=True)):
            level_O = format.nearest((column_O - minimum_O) * inverse_O)
            levels_IO[first + index] = level_O
            error_O = errors_SO[index]
            torch.sub(column_O, level_O.mul_(scale_O).add_(minimum_O), out=error_O)
            error_O /= factor_S[index]
            block_SO[index + 1 :].addr_(factor_S[index + 1 :], error_O, alpha=-1)
        moved_IO[end:].addmm_(factor_II[first:end, end:].T, errors_SO, alpha=-1)
        scales.append(scale_O)
        minima.append(minimum_O)
    return Rounded(format, levels_IO, torch.stack(scales), torch.stack(minima))
