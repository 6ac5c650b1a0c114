"""Balanced binary trees over a layer's calibration tokens, and the regression that fits their leaves to the parent.

Nodes are numbered level by level from the root, 0; the children of node n are 2n + 1 and 2n + 2. This file knows tokens
and their projections. It does not know networks. Legend of shape suffixes: N tokens, D hidden, M features, C nodes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blocklib.errors import NotFiniteError, SettingError

_POWER_STEPS = 16
_ALIKE = 1e-4


@dataclass(frozen=True)
class Tree:
    """A token x goes right at node c where weight_CD[c] . x + bias_C[c] >= 0.

    `regions` are the indices of the tokens that reach each of the 2^depth leaves, left to right.
    """

    weight_CD: Tensor
    bias_C: Tensor
    regions: tuple[Tensor, ...]


def median_trees(input_ND: Tensor, trees: int, depth: int, spread: float) -> list[Tree]:
    """Trees that split the tokens recursively at the median along the direction of largest variance. So every leaf of a
    tree gets the same number. Each tree leaves out the directions of the earlier trees' roots. `spread` is the root
    mean square of the logits over the tokens that reach a node. Equal tokens cannot be split: their node sends all of
    them to one side, and both its children are made as if they got them. Computed in float32. Raises SettingError where
    there are no tokens, NotFiniteError where they are not finite.
    """
    if not len(input_ND):
        raise SettingError("a tree needs calibration tokens, and there are none; raise data.calibration_tokens")
    if not torch.isfinite(input_ND).all():
        raise NotFiniteError("the inputs of the parent's FFN hold NaN or infinite values on the calibration tokens")
    rest_ND = input_ND.float()
    alike = _ALIKE * float(rest_ND.norm(dim=1).mean())
    grown: list[Tree] = []
    for _ in range(trees):
        grown.append(_tree(rest_ND, depth, spread, alike))
        root_D = torch.nn.functional.normalize(grown[-1].weight_CD[0], dim=0)
        rest_ND = rest_ND - torch.outer(rest_ND @ root_D, root_D)
    return grown


def _tree(tokens_ND: Tensor, depth: int, spread: float, alike: float) -> Tree:
    weights, biases = [], []
    regions = [torch.arange(len(tokens_ND), device=tokens_ND.device)]
    for _ in range(depth):
        parts = []
        for region in regions:
            weight_D, bias = _node(tokens_ND[region], spread, alike)
            weights.append(weight_D)
            biases.append(bias)
            is_right_N = tokens_ND[region] @ weight_D + bias >= 0
            is_parted = bool(is_right_N.any() and not is_right_N.all())
            parts += [region[~is_right_N], region[is_right_N]] if is_parted else [region, region]
        regions = parts
    return Tree(torch.stack(weights), torch.stack(biases), tuple(regions))


def _node(tokens_ND: Tensor, spread: float, alike: float) -> tuple[Tensor, Tensor]:
    """The weight, [D], and the bias that split these tokens into halves."""
    direction_D = principal_direction(tokens_ND)
    projection_N = tokens_ND @ direction_D
    ordered_N = projection_N.sort().values
    middle = (ordered_N[(len(ordered_N) - 1) // 2] + ordered_N[len(ordered_N) // 2]) / 2
    width = (projection_N - middle).square().mean().sqrt()
    scale = torch.where(width > alike, spread / width, 0)
    return scale * direction_D, -scale * middle


def principal_direction(tokens_ND: Tensor) -> Tensor:
    """The unit direction of largest variance of the tokens, [D], by a power iteration from the channel of largest
    variance. Zero if the tokens do not differ.
    """
    centred_ND = tokens_ND - tokens_ND.mean(0)
    direction_D = torch.zeros_like(tokens_ND[0])
    direction_D[centred_ND.square().sum(0).argmax()] = 1
    for _ in range(_POWER_STEPS):
        direction_D = torch.nn.functional.normalize(centred_ND.T @ (centred_ND @ direction_D), dim=0)
    return direction_D


def ridge(features_NM: Tensor, target_ND: Tensor, strength: float) -> Tensor:
    """The matrix B, [M, D], that minimises ||features B - target||^2 + damping ||B||^2, solved in float64.

    The damping is `strength` times the mean of the features' squared norms over the tokens.
    """
    gram_MM = (features_NM.T @ features_NM).double()
    damping = strength * gram_MM.diagonal().mean().clamp_min(1e-30)
    gram_MM.diagonal().add_(damping)
    solved_MD: Tensor = torch.linalg.solve(gram_MM, (features_NM.T @ target_ND).double())
    return solved_MD.to(target_ND.dtype)
