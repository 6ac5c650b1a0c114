"""A rounded matrix made better under the full moments: all scales of a row solved together, then levels moved.

With levels fixed a row is linear in its scales and minima, so the best ones solve one small system (least squares).
With these fixed, a level moves to what is best given all the others (coordinate descent). A row takes a step only where
its error falls.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blocklib.precisions.formats import LevelFormat
from blocklib.precisions.moments import DAMPING, InputMoments
from blocklib.precisions.rounded import Rounded
from blocklib.precisions.scales import inverse

RIDGE = 1e-6
"""Added to a system's diagonal, as a share of its mean: blocks whose levels are all zero leave it singular."""
WINDOW = 64
"""Blocks solved together; in longer rows one window after the other, since the work grows with the cube."""


@dataclass(frozen=True)
class Refit:
    """A rounded matrix and the error of each of its outputs, in the unit of `output_error_O`."""

    rounded: Rounded
    error_O: Tensor


def output_error_O(weight_IO: Tensor, values_IO: Tensor, moments: InputMoments) -> Tensor:
    """The mean square of each output's error, (w - v)' H (w - v), over the mean square of an input."""
    error_IO = weight_IO - values_IO
    return (moments.scaled_II @ error_IO).mul_(error_IO).sum(0)


def refit(weight_IO: Tensor, rounded: Rounded, moments: InputMoments) -> Refit:
    """Scales, then levels, then scales once more."""
    first = solve_scales(weight_IO, rounded, moments)
    moved = move_levels(weight_IO, first.rounded, moments)
    second = solve_scales(weight_IO, moved, moments)
    better_O = second.error_O < first.error_O
    return Refit(first.rounded.where(better_O, second.rounded), torch.minimum(first.error_O, second.error_O))


def solve_scales(weight_IO: Tensor, rounded: Rounded, moments: InputMoments) -> Refit:
    """The scales and minima with the least error under the damped moments, for the levels as they are. A row whose
    error under the plain moments does not fall, since storing them spoils the gain, keeps those it has."""
    error_IO = weight_IO - rounded.values_IO()
    pull_IO = moments.damped_II @ error_IO
    before_O = (error_IO * pull_IO).sum(0)
    damped_O = before_O.clone()
    size, inputs = rounded.format.numbers, len(weight_IO)
    scales_NO, minima_NO = rounded.scales_NO.clone(), rounded.minima_NO.clone()
    for first in range(0, inputs, WINDOW * size):
        columns = slice(first, min(first + WINDOW * size, inputs))
        blocks = slice(columns.start // size, columns.stop // size)
        levels_NSO = rounded.levels_NSO[blocks]
        pull_PO = _projected(levels_NSO, pull_IO[columns].view(levels_NSO.shape), rounded.format)
        before_PO = _unknowns(scales_NO[blocks], minima_NO[blocks], rounded.format)
        normal_PPO = _normal_equations(levels_NSO, moments.damped_II[columns, columns], rounded.format)
        after_PO, gain_O = _solved(normal_PPO, pull_PO, before_PO, rounded.format)
        scales_NO[blocks] = after_PO[: len(levels_NSO)]
        if rounded.format.has_minimum:
            minima_NO[blocks] = after_PO[len(levels_NSO) :]
        damped_O -= gain_O
        if columns.stop < inputs:
            now = Rounded(rounded.format, levels_NSO.flatten(0, 1), scales_NO[blocks], minima_NO[blocks])
            was = Rounded(rounded.format, now.levels_IO, rounded.scales_NO[blocks], rounded.minima_NO[blocks])
            pull_IO.addmm_(moments.damped_II[:, columns], was.values_IO() - now.values_IO())
    solved = Rounded(rounded.format, rounded.levels_IO, scales_NO, minima_NO)
    before_O -= DAMPING * error_IO.square().sum(0)
    after_O = damped_O - DAMPING * (weight_IO - solved.values_IO()).square().sum(0)
    return Refit(rounded.where(after_O < before_O, solved), torch.minimum(after_O, before_O))


def _unknowns(scales_NO: Tensor, minima_NO: Tensor, format: LevelFormat) -> Tensor:
    return torch.cat([scales_NO, minima_NO]) if format.has_minimum else scales_NO


def _projected(levels_NSO: Tensor, pull_NSO: Tensor, format: LevelFormat) -> Tensor:
    """Q' of the pull: half of how fast the error falls with each scale, and each minimum, [P, O]."""
    sums_NO = (levels_NSO * pull_NSO).sum(1)
    return torch.cat([sums_NO, pull_NSO.sum(1)]) if format.has_minimum else sums_NO


def _normal_equations(levels_NSO: Tensor, moments_II: Tensor, format: LevelFormat) -> Tensor:
    """Q' H Q of each row, where column n of Q has the levels of block n, and for its minimum ones: [P, P, O]."""
    blocks, size, outputs = levels_NSO.shape
    levels_IO = levels_NSO.flatten(0, 1)
    unknowns = 2 * blocks if format.has_minimum else blocks
    normal_PPO = levels_NSO.new_empty(unknowns, unknowns, outputs)
    for block, levels_SO in enumerate(levels_NSO):
        first = block * size
        reached_IO = moments_II[first:, first : first + size] @ levels_SO
        sums_NO = reached_IO.mul_(levels_IO[first:]).view(-1, size, outputs).sum(1)
        normal_PPO[block, block:blocks] = sums_NO
        normal_PPO[block:blocks, block] = sums_NO
    if format.has_minimum:
        sums_IN = moments_II.reshape(-1, blocks, size).sum(2)
        mixed_NNO = sums_IN.view(blocks, size, blocks).transpose(1, 2) @ levels_NSO
        normal_PPO[:blocks, blocks:] = mixed_NNO
        normal_PPO[blocks:, :blocks] = mixed_NNO.transpose(0, 1)
        normal_PPO[blocks:, blocks:] = sums_IN.view(blocks, size, blocks).sum(1)[..., None]
    return normal_PPO


def _solved(normal_PPO: Tensor, pull_PO: Tensor, before_PO: Tensor, format: LevelFormat) -> tuple[Tensor, Tensor]:
    """The best unknowns, as numbers that the format stores, and by how much they lower the error; where they do not,
    the old."""
    damped_OPP = normal_PPO.permute(2, 0, 1).double()
    diagonal_OP = damped_OPP.diagonal(dim1=1, dim2=2)
    diagonal_OP += RIDGE * diagonal_OP.mean(1, keepdim=True) + torch.finfo(torch.float32).tiny
    factor_OPP, _ = torch.linalg.cholesky_ex(damped_OPP)
    step_OP1 = torch.cholesky_solve(pull_PO.T.double()[..., None], factor_OPP)
    after_PO = format.as_scale(before_PO + step_OP1[..., 0].T.float())
    step_PO = after_PO - before_PO
    curvature_PO = (normal_PPO * step_PO).sum(1)
    gain_O = (step_PO * (2 * pull_PO - curvature_PO)).sum(0)
    better_O = gain_O > 0  # not where it is NaN, either: a system may be too near to singular
    return torch.where(better_O, after_PO, before_PO), torch.where(better_O, gain_O, 0)


def move_levels(weight_IO: Tensor, rounded: Rounded, moments: InputMoments) -> Rounded:
    """One pass of coordinate descent: each level in turn moves to the best one given all others."""
    size, moments_II = rounded.format.numbers, moments.damped_II
    levels_IO = rounded.levels_IO.clone()
    pull_IO = moments_II @ (weight_IO - rounded.values_IO())
    free_I = inverse(moments_II.diagonal())
    steps_SO = torch.empty_like(levels_IO[:size])
    for block, (scale_O, inverse_O) in enumerate(zip(rounded.scales_NO, inverse(rounded.scales_NO), strict=True)):
        first, end = block * size, (block + 1) * size
        block_SO, near_SS = pull_IO[first:end], moments_II[first:end, first:end]
        for index, (pull_O, near_S) in enumerate(zip(block_SO, near_SS, strict=True)):
            level_O = levels_IO[first + index]
            aim_O = rounded.format.nearest((pull_O * free_I[first + index]).mul_(inverse_O).add_(level_O))
            step_O = torch.sub(aim_O, level_O, out=steps_SO[index]).mul_(scale_O)
            level_O.copy_(aim_O)
            block_SO[index + 1 :].addr_(near_S[index + 1 :], step_O, alpha=-1)
        pull_IO[end:].addmm_(moments_II[end:, first:end], steps_SO, alpha=-1)
    return Rounded(rounded.format, levels_IO, rounded.scales_NO, rounded.minima_NO)
