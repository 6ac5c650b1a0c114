"""The contribution of each FFN channel to its layer's output, from activations.

Contribution of channel i: the mean over tokens of |x_i| times the norm of column i of the down projection, which is the
mean size of what the output would lose without it (Puzzle, arXiv 2411.19146, section 3.2).
"""

from torch import Tensor


def channel_sizes(hidden_BTF: Tensor) -> Tensor:
    """The sum over the tokens of each sequence of |x_i|, for each input of a down projection, in float32, [B, F]."""
    return hidden_BTF.abs().float().sum(1)


def contribution(sizes_BF: Tensor, tokens: int, down_DF: Tensor) -> Tensor:
    """The contribution of each channel, [F], from the sizes of all sequences, of so many tokens together, and the
    weight of the down projection."""
    contribution_F: Tensor = sizes_BF.sum(0) / tokens * down_DF.float().norm(dim=0)
    return contribution_F
