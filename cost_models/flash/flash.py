"""Seconds per token of a model larger than its DRAM, the rest of which is read from Flash as tokens need it.

The simulator of DIP-CA (arXiv 2412.01380), as its code does it. Only bytes take time: no computing, no search for the
largest, no latency per read. Static parts stand in DRAM; what of their weights does not fit is streamed by every token.
All matrices whose rows or columns, their units, come and go share the rest of DRAM equally. A unit found there
is charged DRAM only, another one Flash only. All for one sequence at a time.

To add up over blocks, as a solver needs it, each FFN has an equal share of the DRAM that the parent's static parts
leave, whatever stands in other layers. A share that an FFN does not use is given to no other, nor is what a child's
smaller attention frees: a child is at least as fast as the sum says, as far as more cache means more hits.

Units are powers of ten: 8 GB are 8e9 bytes. Knows no models: sizes and hits are given as numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.errors import ScenarioError
from cost_models.flash.cache import POLICIES


@dataclass(frozen=True)
class MemoryHierarchy:
    """A machine with `dram_bytes` for the model, and a Flash that holds all of it.

    `concurrent`: both can be read at the same time. `gamma` and `policy` say how units are chosen and kept, as in
    `masking.py` and `cache.py`; a gamma of 1 is plain DIP. Raises ScenarioError where a value makes no sense.
    """

    dram_bytes: float
    dram_bytes_per_second: float
    flash_bytes_per_second: float
    concurrent: bool = False
    gamma: float = 1.0
    policy: str = "lfu"

    def __post_init__(self) -> None:
        for name in ("dram_bytes", "dram_bytes_per_second", "flash_bytes_per_second"):
            if not 0 < getattr(self, name) < math.inf:
                raise ScenarioError(f"{name} is {getattr(self, name)}; it must be positive and finite")
        if not 0 < self.gamma <= 1:
            raise ScenarioError(f"gamma is {self.gamma}; it must be above 0 and at most 1")
        if self.policy not in POLICIES:
            raise ScenarioError(f"there is no policy {self.policy!r}; policies: {', '.join(POLICIES)}")
        if self.policy == "belady" and self.gamma != 1:
            raise ScenarioError(f"policy belady must know the masks to come, which a gamma of {self.gamma} changes")

    def seconds(self, dram_bytes: float, flash_bytes: float) -> float:
        """To read as much of each: one after the other, or, if concurrent, what takes longer."""
        dram_s, flash_s = dram_bytes / self.dram_bytes_per_second, flash_bytes / self.flash_bytes_per_second
        return max(dram_s, flash_s) if self.concurrent else dram_s + flash_s


@dataclass(frozen=True)
class Static:
    """The residents of DRAM: weights every token reads, weights hardly read, and the KV cache at its longest.

    An embedding table is hardly read: a token looks up one row. Leave it out where it may stay in Flash.
    """

    weight_bytes: float
    idle_bytes: float = 0.0
    cache_bytes: float = 0.0


@dataclass(frozen=True)
class Hook:
    """Where units are chosen: one mask of so many `units` for each of the `linears` that share it.

    `unit_bytes` are those of one unit in one linear, a row or a column of its matrix. A gated FFN of DIP has two: the
    input's channels, columns of gate and up, and the hidden ones, columns of down.
    """

    units: int
    unit_bytes: float
    linears: int = 1

    def __post_init__(self) -> None:
        if self.units < 1 or self.linears < 1 or not 0 < self.unit_bytes < math.inf:
            raise ValueError(f"{self}: needs units and linears, and units of a positive and finite size")


@dataclass(frozen=True, eq=False)
class Traffic:
    """The requests of one sequence at a hook: units of each token that stood in DRAM, [T], and that did not, [T]."""

    hook: Hook
    hits_T: NDArray[np.int64]
    misses_T: NDArray[np.int64]


def streamed_bytes(hierarchy: MemoryHierarchy, static: Static) -> float:
    """Static weights for which DRAM has no room. Raises ScenarioError where it has none even for what cannot be
    streamed.

    That is the KV cache, which is written too, and the weights called idle.
    """
    room = hierarchy.dram_bytes - static.cache_bytes - static.idle_bytes
    if room < 0:
        raise ScenarioError(
            f"a KV cache of {static.cache_bytes:.3g} bytes and idle weights of {static.idle_bytes:.3g} do not fit "
            f"{hierarchy.dram_bytes:.3g} bytes of DRAM; shorten the context, or give it more"
        )
    return max(0.0, static.weight_bytes - room)


def dynamic_bytes(hierarchy: MemoryHierarchy, static: Static) -> float:
    """DRAM the static parts leave; 0 where they overflow. Raises ScenarioError as `streamed_bytes` does."""
    if streamed_bytes(hierarchy, static) > 0:
        return 0.0
    return hierarchy.dram_bytes - static.weight_bytes - static.idle_bytes - static.cache_bytes


def slots(share_bytes: float, hooks: Sequence[Hook], dense_bytes: float = 0.0) -> tuple[int, ...]:
    """How many units of each hook DRAM has room for, where every linear gets as much of `share_bytes` as any other.

    For one FFN: its share and its hooks. For a whole model: all that is left, for all hooks. `dense_bytes`, which every
    token reads, go in first. Bytes that a linear cannot use stay unused.
    """
    each = max(0.0, share_bytes - dense_bytes) / sum(hook.linears for hook in hooks)
    return tuple(min(hook.units, int(each / hook.unit_bytes)) for hook in hooks)


def dynamic_seconds(hierarchy: MemoryHierarchy, traffics: Sequence[Traffic]) -> NDArray[np.float64]:
    """The seconds that each token of one sequence waits for its units, [T], over all hooks, one linear after another.

    Raises ValueError where there is no hook.
    """
    if not traffics:
        raise ValueError("no traffic: give that of at least one hook")
    each = np.array([_linear_seconds(hierarchy, traffic) * traffic.hook.linears for traffic in traffics])
    seconds_T: NDArray[np.float64] = each.sum(0)
    return seconds_T


def _linear_seconds(hierarchy: MemoryHierarchy, traffic: Traffic) -> NDArray[np.float64]:
    """The seconds of each token, [T], for one of the hook's linears."""
    pairs = zip(traffic.hits_T.tolist(), traffic.misses_T.tolist(), strict=True)
    size = traffic.hook.unit_bytes
    return np.array([hierarchy.seconds(hits * size, misses * size) for hits, misses in pairs])


def ffn_share_bytes(hierarchy: MemoryHierarchy, parent: Static, ffns: int) -> float:
    """DRAM that each of the parent's FFNs has for itself; one that stands for several has as many shares.

    `parent` holds everything but its FFNs. Raises ScenarioError as `streamed_bytes` does.
    """
    return dynamic_bytes(hierarchy, parent) / ffns


def block_seconds(
    hierarchy: MemoryHierarchy,
    share_bytes: float,
    dense_bytes: float = 0.0,
    sequences: Sequence[Sequence[Traffic]] = (),
) -> float:
    """The mean seconds per token that one FFN adds, given its share of DRAM, without anything else's.

    `dense_bytes` every token reads: all of a dense FFN, a linear map, or a skip's nothing; of a sparse one what is no
    unit of a hook, such as its norm. The part that fits the share stays there; every token streams the rest.
    `sequences` are a sparse FFN's traffic, played with as many cached units as `slots(share_bytes, hooks, dense_bytes)`
    gives. One over a sum of these is at most the mean of the sequences' rates; of sequences alike it is that mean.
    """
    resident = min(dense_bytes, share_bytes)
    seconds = hierarchy.seconds(resident, dense_bytes - resident)
    if sequences:
        seconds += float(np.mean([dynamic_seconds(hierarchy, each).mean() for each in sequences]))
    return seconds
