"""Seconds per token of a model larger than its DRAM: against closed forms, and added up over blocks."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cost_models.flash.flash import (
    Hook,
    MemoryHierarchy,
    Static,
    Traffic,
    block_seconds,
    dynamic_bytes,
    dynamic_seconds,
    ffn_share_bytes,
    slots,
    streamed_bytes,
)
from cost_models.flash.masking import Selection, play

MACHINE = MemoryHierarchy(dram_bytes=1000, dram_bytes_per_second=100, flash_bytes_per_second=10)
CONCURRENT = dataclasses.replace(MACHINE, concurrent=True)


def traffic(hook: Hook, hits: list[int], misses: list[int]) -> Traffic:
    return Traffic(hook, np.array(hits), np.array(misses))


def played(
    machine: MemoryHierarchy, hooks: list[Hook], capacities: tuple[int, ...], tokens: int, seed: int
) -> list[Traffic]:
    """The traffic of one FFN and one sequence: random activations, of which half are kept."""
    generator = torch.Generator().manual_seed(seed)
    traffics = []
    for hook, capacity in zip(hooks, capacities, strict=True):
        values_TN = torch.randn(hook.units, generator=generator).exp() * torch.randn(
            tokens, hook.units, generator=generator
        )
        one = play(values_TN, Selection(hook.units // 2, machine.gamma), machine.policy, capacity)
        traffics.append(Traffic(hook, one.hits_T, one.misses_T))
    return traffics


# --- units that come and go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", [MACHINE, CONCURRENT])
def test_a_token_that_asks_the_same_again_finds_it_in_dram(machine: MemoryHierarchy) -> None:
    hook = Hook(units=8, unit_bytes=0.5, linears=2)
    sequence = play(torch.tensor([[5.0, 1, 1, 4, 1, 3, 1, 1]] * 2), Selection(3), "lfu", 3)
    seconds = dynamic_seconds(machine, [Traffic(hook, sequence.hits_T, sequence.misses_T)])
    assert seconds == pytest.approx([2 * 3 * 0.5 / 10, 2 * 3 * 0.5 / 100])


def test_hits_and_misses_are_read_in_turn_or_at_once() -> None:
    one, other = Hook(10, 5, 2), Hook(20, 2)
    traffics = [traffic(one, [0, 4, 7], [6, 1, 0]), traffic(other, [8, 0, 9], [0, 5, 1])]
    one_after_another = [2 * 3 + 0.16, 2 * (0.2 + 0.5) + 1, 2 * 0.35 + 0.18 + 0.2]
    assert dynamic_seconds(MACHINE, traffics) == pytest.approx(one_after_another)
    at_once = [2 * 3 + 0.16, 2 * 0.5 + 1, 2 * 0.35 + 0.2]
    assert dynamic_seconds(CONCURRENT, traffics) == pytest.approx(at_once)
    with pytest.raises(ValueError, match="no traffic"):
        dynamic_seconds(MACHINE, [])


@pytest.mark.parametrize(("policy", "gamma"), [("lfu", 1), ("lfu", 0.2), ("lru", 1), ("lru", 0.2), ("belady", 1)])
def test_with_room_for_all_flash_is_read_only_for_what_no_token_used_before(policy: str, gamma: float) -> None:
    machine = MemoryHierarchy(1e6, 100, 10, gamma=gamma, policy=policy)
    hook = Hook(64, 4, 2)
    (capacity,) = slots(machine.dram_bytes, [hook])
    assert capacity == 64
    values_TN = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    sequence = play(values_TN, Selection(32, gamma), policy, capacity)
    before_TN = np.cumsum(sequence.masks_TN, axis=0) - sequence.masks_TN > 0
    new_T = (sequence.masks_TN & ~before_TN).sum(1)
    seconds_T = dynamic_seconds(machine, [Traffic(hook, sequence.hits_T, sequence.misses_T)])
    assert seconds_T == pytest.approx(2 * 4 * (new_T / 10 + (32 - new_T) / 100))
    assert new_T[0] == 32
    assert 32 <= new_T.sum() <= 64
    assert gamma < 1 or new_T.sum() == 64


def test_every_linear_has_as_many_bytes_as_any_other() -> None:
    """Llama-like: 40 layers, 5120 channels, 17920 hidden ones, four bits a weight, 2 GB for all of it."""
    width, hidden, layers, size = 5120, 17920, 40, 0.5
    block = [Hook(width, hidden * size, 2), Hook(hidden, width * size)]
    expected = (int(2e9 / (3 * layers) / (hidden * size)), int(2e9 / (3 * layers) / (width * size)))
    assert expected == (1860, 6510)
    model = [Hook(hook.units, hook.unit_bytes, hook.linears * layers) for hook in block]
    assert slots(2e9, model) == slots(2e9 / layers, block) == expected
    assert slots(2e9 / layers, block, dense_bytes=2e9 / layers - 3 * 5 * hidden * size) == (5, 17)
    assert slots(1, block) == slots(1e6, block, dense_bytes=2e6) == (0, 0)
    assert slots(1e12, block) == (width, hidden)


# --- what stands there throughout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", [MACHINE, CONCURRENT])
def test_what_of_the_static_parts_does_not_fit_is_streamed(machine: MemoryHierarchy) -> None:
    fits = Static(weight_bytes=700, idle_bytes=100, cache_bytes=150)
    assert (streamed_bytes(machine, fits), dynamic_bytes(machine, fits)) == (0, 50)
    overflows = dataclasses.replace(fits, weight_bytes=900)
    assert (streamed_bytes(machine, overflows), dynamic_bytes(machine, overflows)) == (150, 0)
    assert slots(dynamic_bytes(machine, overflows), [Hook(10, 1)]) == (0,)
    with pytest.raises(ValueError, match=r"KV cache of 950 bytes.*1e\+03 bytes of DRAM"):
        streamed_bytes(machine, Static(0, idle_bytes=51, cache_bytes=950))


# --- added up -------------------------------------------------------------------------------------------------------


def test_a_sum_of_mean_seconds_is_never_better_than_the_mean_of_rates() -> None:
    hook = Hook(10, 5)
    sequences = [[traffic(hook, [0, 2], [2, 0])], [traffic(hook, [4, 4], [0, 0])]]
    rates = [1 / (0.3 + dynamic_seconds(MACHINE, each).mean()) for each in sequences]
    assert rates == pytest.approx([1 / (0.3 + 0.55), 1 / (0.3 + 0.2)])
    summed = 0.3 + block_seconds(MACHINE, 1000, sequences=sequences)
    assert summed == pytest.approx(0.3 + (0.55 + 0.2) / 2)
    assert 1 / summed < sum(rates) / 2


@pytest.mark.parametrize("concurrent", [False, True])
@pytest.mark.parametrize("gamma", [1, 0.3])
def test_blocks_add_up_to_the_whole_model(concurrent: bool, gamma: float) -> None:
    """The whole simulation, of sparse FFNs alone: the same slots, the same traffic, the same seconds."""
    machine = dataclasses.replace(MACHINE, dram_bytes=4500, concurrent=concurrent, gamma=gamma)
    static, layers = Static(1000, 300, 200), 3
    block = [Hook(32, 24, 2), Hook(48, 16)]
    share = ffn_share_bytes(machine, static, layers)
    assert share == 3000 / 3
    capacities = slots(share, block)
    assert capacities == slots(3000, block * layers)[:2] == (13, 20)
    traffics = [played(machine, block, capacities, 40, seed) for seed in range(layers)]
    together = [each for layer in traffics for each in layer]
    hits, misses = sum(each.hits_T.sum() for each in together), sum(each.misses_T.sum() for each in together)
    assert 0.1 < hits / (hits + misses) < 0.8
    blocks = [block_seconds(machine, share, sequences=[each]) for each in traffics]
    assert sum(blocks) == pytest.approx(dynamic_seconds(machine, together).mean())


@pytest.mark.parametrize(("machine", "both"), [(MACHINE, sum), (CONCURRENT, max)])
def test_a_dense_ffn_streams_what_its_share_does_not_hold(machine: MemoryHierarchy, both: Any) -> None:
    assert block_seconds(machine, 300) == 0
    assert block_seconds(machine, 300, 200) == pytest.approx(2)
    assert block_seconds(machine, 300, 300) == pytest.approx(3)
    assert block_seconds(machine, 300, 500) == pytest.approx(both((3, 20)))
    assert block_seconds(machine, 0, 500) == pytest.approx(50)
    sparse = [[traffic(Hook(10, 5), [2], [1])]]
    expected = both((3, 2)) + both((0.1, 0.5))
    assert block_seconds(machine, 300, 320, sparse) == pytest.approx(expected)


@given(
    dense=st.floats(0, 1e6),
    shares=st.lists(st.floats(0, 1e6), min_size=2, max_size=2).map(sorted),
    concurrent=st.booleans(),
)
def test_a_larger_share_never_takes_a_dense_ffn_longer(dense: float, shares: list[float], concurrent: bool) -> None:
    machine = dataclasses.replace(MACHINE, concurrent=concurrent)
    small, large = (block_seconds(machine, share, dense) for share in shares)
    # Read at once, DRAM is the slower of the two only where it holds ten times as much as is streamed.
    if not concurrent or 10 * (dense - min(dense, shares[1])) >= min(dense, shares[1]):
        assert large <= small * (1 + 1e-9)
    assert large >= dense / (110 if concurrent else 100) * (1 - 1e-9)


def test_the_seconds_are_those_of_powers_of_ten() -> None:
    """A phone with 60 GB/s and 1 GB/s, and an FFN of 137.6 MB of which 37.6 MB stand in DRAM."""
    phone = MemoryHierarchy(4e9, 60e9, 1e9)
    assert block_seconds(phone, 37.6e6, 137.6e6) == pytest.approx(0.1 + 0.0376 / 60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dram_bytes": 0}, "dram_bytes is 0"),
        ({"dram_bytes": math.inf}, "dram_bytes is inf"),
        ({"dram_bytes_per_second": -1}, "dram_bytes_per_second is -1"),
        ({"flash_bytes_per_second": math.nan}, "flash_bytes_per_second is nan"),
        ({"gamma": 0}, "gamma is 0"),
        ({"gamma": 1.5}, r"gamma is 1\.5"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"policy": "fifo"}, "policies: lfu, lru, belady, none"),
        ({"policy": "belady", "gamma": 0.5}, "masks to come"),
    ],
)
def test_machines_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MACHINE, **change)


def test_hooks_that_make_no_sense_are_refused() -> None:
    for wrong in ((0, 1.0, 1), (1, 0.0, 1), (1, math.inf, 1), (1, 1.0, 0)):
        with pytest.raises(ValueError, match="Hook"):
            Hook(*wrong)
