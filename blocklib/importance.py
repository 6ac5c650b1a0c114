"""The contribution of each FFN channel to its layer's output, from activations.

Contribution of channel i: the mean over tokens of |x_i| times the norm of column i of the down projection, which is the
mean size of what the output would lose without it (Puzzle, arXiv 2411.19146, section 3.2).
"""

import torch
from torch import Tensor


class ContributionMeter:
    """Gathers one layer's channel contributions over batches of the inputs of its down projection, given the weight of
    that projection."""

    def __init__(self, down_DF: Tensor):
        self._column_norms_F = down_DF.float().norm(dim=0)
        self._sum_F = torch.zeros_like(self._column_norms_F)
        self._tokens = 0

    def add(self, hidden_BTF: Tensor) -> None:
        flat_NF = hidden_BTF.flatten(0, -2)
        self._sum_F += flat_NF.abs().float().sum(0)
        self._tokens += len(flat_NF)

    def contribution_F(self) -> Tensor:
        contribution_F: Tensor = self._sum_F / self._tokens * self._column_norms_F
        return contribution_F
