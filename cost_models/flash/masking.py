"""Cache-aware masking (DIP-CA, arXiv 2412.01380): prefer what stands in fast memory already.

A token keeps the units of largest score: the magnitude of the activation, times `gamma` where the unit is not cached.
Only the choice changes; what is multiplied are the activations as they are. It is defined for one sequence, a token at
a time, since the choice depends on the cache and the cache on the choices before. Knows no bytes and no seconds.

Shapes: T tokens of one sequence, N units.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blocklib.ffn.dip import kept_indices
from cost_models.flash.cache import Belady, UnitCache, empty_cache


@dataclass(frozen=True)
class Selection:
    """How a token chooses: `kept` units; those not cached count `gamma` times their magnitude.

    The `fixed_top` largest magnitudes are never weighed down. With a `gamma` of 1 the cache has no say. One of 0 would
    leave the order of all that is not cached to chance. Raises ValueError where a number makes no sense.
    """

    kept: int
    gamma: float = 1.0
    fixed_top: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; it must be above 0 and at most 1")
        if not 0 <= self.fixed_top <= self.kept or self.kept < 1:
            raise ValueError(f"{self.fixed_top} of {self.kept} kept units are fixed; use 0 to all of at least 1")


def chosen(sizes_N: Tensor, selection: Selection, cached_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The units a token keeps, bool [N], by the magnitudes of its activations and by what is cached before it.

    With a gamma of 1, to the bit what the model keeps, ties included: the search is the model's own, in the dtype of
    `sizes_N`. Raises ValueError for more than one token.
    """
    if sizes_N.ndim != 1:
        raise ValueError(f"cache-aware masking is for one token at a time, not for a tensor {list(sizes_N.shape)}")
    in_full = torch.from_numpy(cached_N.copy())
    in_full[kept_indices(sizes_N, selection.fixed_top)] = True
    scores = torch.where(in_full, sizes_N, sizes_N * selection.gamma)
    mask = torch.zeros(len(sizes_N), dtype=torch.bool)
    mask[kept_indices(scores, selection.kept)] = True
    return mask.numpy()


@dataclass(frozen=True, eq=False)
class Played:
    """One sequence: what each token kept, bool [T, N]; how much of it was cached before, [T], and how much was not."""

    masks_TN: NDArray[np.bool_]
    hits_T: NDArray[np.int64]
    misses_T: NDArray[np.int64]


def play(values_TN: Tensor, selection: Selection, policy: str, capacity: int, seed: int = 0) -> Played:
    """The activations of one sequence, [T, N] on the CPU, one by one through the choice and a cache empty at first.

    `capacity` is in units. Raises ValueError for activations that are not finite, and for policy belady, which must
    know all masks beforehand, with a gamma below 1, by which they depend on the cache.
    """
    if values_TN.ndim != 2 or not bool(values_TN.isfinite().all()):
        raise ValueError(f"activations must be finite and [tokens, units]; these are {list(values_TN.shape)}")
    units = values_TN.shape[1]
    sizes_TN = values_TN.detach().abs()
    if policy == "belady":
        if selection.gamma != 1:
            raise ValueError(f"policy belady must know the masks to come, which a gamma of {selection.gamma} changes")
        nothing = np.zeros(units, dtype=np.bool_)
        masks_TN = np.stack([chosen(sizes_N, selection, nothing) for sizes_N in sizes_TN])
        hits_T = replay(masks_TN, Belady(masks_TN, capacity, seed))
    else:
        masks_TN, hits_T = _play_in_turn(sizes_TN, selection, empty_cache(policy, units, capacity, seed))
    return Played(masks_TN, hits_T, masks_TN.sum(1) - hits_T)


def replay(masks_TN: NDArray[np.bool_], cache: UnitCache) -> NDArray[np.int64]:
    """Hits of each token, [T], where what the tokens use, bool [T, N], is given. The cache goes on from where it is."""
    hits_T = np.zeros(len(masks_TN), dtype=np.int64)
    for token, mask in enumerate(masks_TN):
        hits_T[token] = np.count_nonzero(mask & cache.cached)
        cache.update(mask)
    return hits_T


def _play_in_turn(
    sizes_TN: Tensor, selection: Selection, cache: UnitCache
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Masks and hits, where each choice depends on the cache that those before it left."""
    masks_TN = np.zeros(tuple(sizes_TN.shape), dtype=np.bool_)
    hits_T = np.zeros(len(sizes_TN), dtype=np.int64)
    for token, sizes_N in enumerate(sizes_TN):
        mask = masks_TN[token] = chosen(sizes_N, selection, cache.cached)
        hits_T[token] = np.count_nonzero(mask & cache.cached)
        cache.update(mask)
    return masks_TN, hits_T
