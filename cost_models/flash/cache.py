"""Which rows or columns of a matrix, its units, stand in fast memory from token to token.

All policies are mask-first: what a token used is admitted, and what others used makes room, the least worth first
(DIP-CA, arXiv 2412.01380, as its code does it). Policies differ in what a unit is worth. Knows no bytes, no seconds and
no model.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

POLICIES = ("lfu", "lru", "belady", "none")
"""Least frequently used, least recently used, farthest next use, and no cache at all."""


class UnitCache(ABC):
    """`cached`, bool [units], is what stands there now: nothing at first, and never more than `capacity` units.

    Where a token uses more units than the cache holds, those of them that are cached stay and a random subset of the
    others, always the same for a `seed`, fills what is left. Raises ValueError for a negative capacity.
    """

    def __init__(self, units: int, capacity: int, seed: int = 0):
        if units < 1 or capacity < 0:
            raise ValueError(f"a cache for {capacity} of {units} units; use at least 0 of at least 1")
        self.cached = np.zeros(units, dtype=np.bool_)
        self.capacity = capacity
        self._random = np.random.default_rng(seed)

    @abstractmethod
    def worth(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Takes note that this token uses `mask`; what each unit is now worth keeping, [units]."""

    def update(self, mask: NDArray[np.bool_]) -> None:
        """A token has used the units in `mask`, bool [units]: admit them, and evict others as they need the room.

        Hits are to be read from `cached` before. The first of units worth the same is evicted first. Raises
        ValueError for a mask of another shape or type.
        """
        if mask.shape != self.cached.shape or mask.dtype != np.bool_:
            raise ValueError(f"a mask is bool {list(self.cached.shape)}, not {mask.dtype} {list(mask.shape)}")
        worth = self.worth(mask)
        used = int(np.count_nonzero(mask))
        if used > self.capacity:
            self.cached &= mask
            room = self.capacity - int(np.count_nonzero(self.cached))
            self.cached[self._random.permutation(np.flatnonzero(mask & ~self.cached))[:room]] = True
            return
        others = np.flatnonzero(self.cached & ~mask)
        surplus = used + len(others) - self.capacity
        if surplus > 0:
            # No two keys are equal, so that which go does not depend on how they are searched.
            keys = worth[others] * len(mask) + others
            self.cached[others[np.argpartition(keys, surplus - 1)[:surplus]]] = False
        self.cached |= mask


class LeastFrequentlyUsed(UnitCache):
    """Evicts what the fewest tokens have used. `counts` never age, and go on while a unit is out of the cache."""

    def __init__(self, units: int, capacity: int, seed: int = 0):
        super().__init__(units, capacity, seed)
        self.counts = np.zeros(units, dtype=np.int64)

    def worth(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        self.counts[mask] += 1
        return self.counts


class LeastRecentlyUsed(UnitCache):
    """Evicts what was last used the longest ago."""

    def __init__(self, units: int, capacity: int, seed: int = 0):
        super().__init__(units, capacity, seed)
        self._token = 0
        self._last = np.zeros(units, dtype=np.int64)

    def worth(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        self._token += 1
        self._last[mask] = self._token
        return self._last


class Belady(UnitCache):
    """Evicts what is used again last, or never: a bound to hold others against, for it knows the masks to come.

    No policy that admits all a token used has more hits, as long as every mask fits. One that may leave some out can
    (Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966).
    `masks` are bool [tokens, units], and what `update` is then told token by token; ValueError if it is not.
    """

    def __init__(self, masks: NDArray[np.bool_], capacity: int, seed: int = 0):
        tokens, units = masks.shape
        super().__init__(units, capacity, seed)
        self._masks = masks
        self._token = 0
        self._next = np.full((tokens, units), tokens, dtype=np.int32)
        for token in range(tokens - 1, 0, -1):
            self._next[token - 1] = np.where(masks[token], token, self._next[token])

    def worth(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        if self._token == len(self._masks) or not np.array_equal(mask, self._masks[self._token]):
            raise ValueError(f"token {self._token} uses other units than Belady's policy was told it would")
        soonest: NDArray[np.int64] = -self._next[self._token].astype(np.int64)
        self._token += 1
        return soonest


def empty_cache(policy: str, units: int, capacity: int, seed: int = 0) -> UnitCache:
    """A cache that holds nothing yet. Raises ValueError for a policy there is not, and for one that knows the future.

    `none` is a cache of no capacity.
    """
    if policy == "belady":
        raise ValueError("policy belady must know the masks to come; make one with Belady(masks, capacity)")
    if policy not in POLICIES:
        raise ValueError(f"there is no policy {policy!r}; policies: {', '.join(POLICIES)}")
    if policy == "lru":
        return LeastRecentlyUsed(units, capacity, seed)
    return LeastFrequentlyUsed(units, 0 if policy == "none" else capacity, seed)
