"""Groups of equal size of neurons that are active together. They split a dense FFN into experts.

Balanced k-means on co-activation, after MoEfication (arXiv 2110.01786, section 3.1) and CMoE (arXiv 2502.04416, section
3.2). This file uses activations only.
"""

import torch
from torch import Tensor

_TOKENS = 2048
_ROUNDS = 8


def balanced_clusters(activity_NF: Tensor, clusters: int) -> Tensor:
    """A permutation of the F neurons, [F]. Every F / `clusters` consecutive neurons are one cluster.

    `activity_NF` is the activity of each neuron for each token, at least 0. Two neurons are close if they are active
    for the same tokens. Deterministic. Raises ValueError where the clusters cannot be of one size.
    """
    width = activity_NF.shape[1]
    if width % clusters:
        raise ValueError(f"{width} neurons cannot form {clusters} clusters of equal size")
    # A subset spread over all tokens is enough.
    picked_NF = activity_NF[:: max(1, len(activity_NF) // _TOKENS)].float()
    profiles_FN = torch.nn.functional.normalize(picked_NF.T, dim=1)
    seeded = torch.Generator().manual_seed(0)
    centres_CN = profiles_FN[torch.randperm(width, generator=seeded)[:clusters]]
    cluster_F = torch.zeros(width, dtype=torch.long)
    for _ in range(_ROUNDS):
        assigned_F = _assign(profiles_FN @ centres_CN.T, width // clusters)
        if torch.equal(assigned_F, cluster_F):
            break
        cluster_F = assigned_F
        sums_CN = torch.zeros_like(centres_CN).index_add_(0, cluster_F.to(profiles_FN.device), profiles_FN)
        centres_CN = torch.nn.functional.normalize(sums_CN, dim=1)
    return cluster_F.argsort(stable=True)


def _assign(likeness_FC: Tensor, size: int) -> Tensor:
    """Each neuron's cluster. The most similar pairs of neuron and cluster come first, as long as the cluster has
    room."""
    neurons, clusters = likeness_FC.shape
    order = likeness_FC.flatten().argsort(descending=True, stable=True).tolist()
    cluster, room, left = [-1] * neurons, [size] * clusters, neurons
    for pair in order:
        neuron, wanted = divmod(pair, clusters)
        if cluster[neuron] < 0 and room[wanted]:
            cluster[neuron] = wanted
            room[wanted] -= 1
            left -= 1
            if not left:
                break
    return torch.tensor(cluster)
