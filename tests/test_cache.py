"""The contents of the cache under every policy, and the choice of a token that knows them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from parents import child_of, random_parent

from blocklib.ffn.dip import PrunedFFN
from cost_models.flash.cache import (
    POLICIES,
    Belady,
    LeastFrequentlyUsed,
    LeastRecentlyUsed,
    UnitCache,
    empty_cache,
)
from cost_models.flash.masking import Selection, chosen, play, replay

Masks = NDArray[np.bool_]


def bits(*texts: str) -> Masks:
    """Masks as the papers' code writes them in its tests, `01101`."""
    return np.array([[letter == "1" for letter in text] for text in texts])


def spelt(mask: Masks) -> str:
    return "".join("1" if bit else "0" for bit in mask)


def make(policy: str, masks: Masks, capacity: int) -> UnitCache:
    return Belady(masks, capacity) if policy == "belady" else empty_cache(policy, masks.shape[1], capacity)


@st.composite
def games(draw: st.DrawFn, must_fit: bool = False, units: int = 7, tokens: int = 12) -> tuple[Masks, int]:
    """A sequence of masks and a capacity, in which each mask fits if it must."""
    count = draw(st.integers(1, units))
    unit_sets = st.sets(st.integers(0, count - 1))
    rows = draw(st.lists(unit_sets, min_size=1, max_size=tokens))
    least = max(map(len, rows)) if must_fit else 0
    masks = np.array([[unit in row for unit in range(count)] for row in rows])
    return masks, draw(st.integers(least, count))


# --- caches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "cached", "counts", "mask", "cached_after", "counts_after"),
    [
        (("00011", "11100"), "11100", [1, 1, 1, 1, 1], "00111", "00111", [1, 1, 2, 2, 2]),
        (("00011", "11000", "11000", "01100"), "11100", [2, 3, 1, 1, 1], "00110", "01110", [2, 3, 2, 2, 1]),
    ],
)
def test_lfu_does_what_the_papers_code_does(
    before: tuple[str, ...], cached: str, counts: list[int], mask: str, cached_after: str, counts_after: list[int]
) -> None:
    cache = LeastFrequentlyUsed(5, 3)
    replay(bits(*before), cache)
    assert (spelt(cache.cached), cache.counts.tolist()) == (cached, counts)
    cache.update(bits(mask)[0])
    assert (spelt(cache.cached), cache.counts.tolist()) == (cached_after, counts_after)


def test_belady_does_what_the_papers_code_does() -> None:
    masks = bits("00110", "11000", "01001", "01100", "01100", "11111")
    cache = Belady(masks, 3)
    seen = []
    for mask in masks:
        cache.update(mask)
        seen.append(spelt(cache.cached))
    assert seen == ["00110", "11100", "01101", "01101", "01101", "01101"]


def test_lru_evicts_what_was_used_the_longest_ago() -> None:
    cache = LeastRecentlyUsed(5, 3)
    seen = []
    for mask in bits("11000", "00100", "01000", "00010", "00001", "00010", "11000"):
        cache.update(mask)
        seen.append(spelt(cache.cached))
    assert seen == ["11000", "11100", "11100", "01110", "01011", "01011", "11010"]


class DictLFU:
    """Mask-first LFU once more, slowly: one unit at a time, in dictionaries and sets."""

    def __init__(self, capacity: int):
        self.capacity, self.uses, self.inside = capacity, dict[int, int](), set[int]()

    def update(self, used: set[int]) -> None:
        for unit in used:
            self.uses[unit] = self.uses.get(unit, 0) + 1
        for unit in sorted(used):
            if unit in self.inside:
                continue
            if len(self.inside) == self.capacity:
                idle = [(self.uses[other], other) for other in self.inside - used]
                self.inside.remove(min(idle)[1])
            self.inside.add(unit)


@given(games(must_fit=True, units=12, tokens=25))
def test_lfu_agrees_with_one_written_otherwise(game: tuple[Masks, int]) -> None:
    masks, capacity = game
    cache, slow = empty_cache("lfu", masks.shape[1], capacity), DictLFU(capacity)
    for mask in masks:
        cache.update(mask)
        slow.update(set(np.flatnonzero(mask).tolist()))
        assert set(np.flatnonzero(cache.cached).tolist()) == slow.inside


@pytest.mark.parametrize("policy", POLICIES)
@given(game=games())
def test_every_cache_is_mask_first_and_never_overfull(policy: str, game: tuple[Masks, int]) -> None:
    masks, capacity = game
    cache, again = make(policy, masks, capacity), make(policy, masks, capacity)
    holds = cache.capacity
    assert holds == (0 if policy == "none" else capacity)
    for mask in masks:
        before = cache.cached.copy()
        cache.update(mask)
        again.update(mask)
        assert np.array_equal(cache.cached, again.cached)
        assert not (cache.cached & ~before & ~mask).any(), "admitted what nobody used"
        if mask.sum() <= holds:
            assert cache.cached[mask].all()
            assert cache.cached.sum() == min(holds, (before | mask).sum()), "evicted more than it had to"
        else:
            assert not (cache.cached & ~mask).any()
            assert cache.cached[before & mask].all()
            assert cache.cached.sum() == holds


def test_which_of_too_many_units_stay_depends_on_the_seed_alone() -> None:
    everything = np.ones(1000, dtype=np.bool_)
    stayed = []
    for seed in (0, 0, 1):
        cache = empty_cache("lfu", 1000, 500, seed)
        cache.update(everything)
        stayed.append(cache.cached)
    assert np.array_equal(stayed[0], stayed[1])
    assert not np.array_equal(stayed[0], stayed[2])
    assert 180 < stayed[0][:500].sum() < 320


def most_hits(masks: Masks, capacity: int, may_bypass: bool) -> int:
    """The best of all ways to keep units, by trying each: after a token, any of the old and the used that fit."""
    best = {frozenset[int](): 0}
    for row in masks:
        used, following = set(np.flatnonzero(row).tolist()), dict[frozenset[int], int]()
        for inside, hits in best.items():
            choices = sorted(inside | used) if may_bypass else sorted(inside - used)
            must = set() if may_bypass else used
            for size in range(min(len(choices), capacity - len(must)) + 1):
                for some in itertools.combinations(choices, size):
                    after = frozenset(must | set(some))
                    following[after] = max(following.get(after, 0), hits + len(inside & used))
        best = following
    return max(best.values())


@given(games(must_fit=True, units=5, tokens=7))
def test_belady_is_the_best_of_all_mask_first_caches(game: tuple[Masks, int]) -> None:
    masks, capacity = game
    assert replay(masks, Belady(masks, capacity)).sum() == most_hits(masks, capacity, may_bypass=False)


@pytest.mark.parametrize("policy", ["lfu", "lru"])
@given(game=games(must_fit=True, units=12, tokens=25))
def test_no_policy_has_more_hits_than_belady_where_masks_fit(policy: str, game: tuple[Masks, int]) -> None:
    masks, capacity = game
    best = replay(masks, Belady(masks, capacity)).sum()
    assert replay(masks, make(policy, masks, capacity)).sum() <= best


@given(games(units=5, tokens=6))
def test_no_policy_at_all_beats_one_that_may_leave_units_out(game: tuple[Masks, int]) -> None:
    masks, capacity = game
    best = most_hits(masks, capacity, may_bypass=True)
    assert all(replay(masks, make(policy, masks, capacity)).sum() <= best for policy in POLICIES)


def test_admitting_every_unit_costs_belady_hits() -> None:
    masks = bits("10", "01", "10")
    assert replay(masks, Belady(masks, 1)).sum() == 0
    assert most_hits(masks, 1, may_bypass=True) == 1


def test_wrong_caches_and_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 of 5"):
        empty_cache("lfu", 5, -1)
    with pytest.raises(ValueError, match="policies: lfu, lru, belady, none"):
        empty_cache("fifo", 5, 3)
    with pytest.raises(ValueError, match="masks to come"):
        empty_cache("belady", 5, 3)
    with pytest.raises(ValueError, match=r"bool \[5\], not int64 \[5\]"):
        empty_cache("lfu", 5, 3).update(np.ones(5, dtype=np.int64))
    with pytest.raises(ValueError, match=r"bool \[5\], not bool \[4\]"):
        empty_cache("lfu", 5, 3).update(np.ones(4, dtype=np.bool_))
    masks = bits("10", "01")
    with pytest.raises(ValueError, match="token 0"):
        Belady(masks, 1).update(masks[1])
    cache = Belady(masks, 1)
    replay(masks, cache)
    with pytest.raises(ValueError, match="token 2"):
        cache.update(masks[1])


# --- choosing -------------------------------------------------------------------------------------------------------


def activations(tokens: int, units: int, spread: float = 0.7, seed: int = 0) -> torch.Tensor:
    """Normal values on channels of log-normal scales, [tokens, units]."""
    generator = torch.Generator().manual_seed(seed)
    scales = (spread * torch.randn(units, generator=generator)).exp()
    return scales * torch.randn(tokens, units, generator=generator)


def pruned_ffn(percent: int) -> PrunedFFN:
    """An FFN of a child with 192 channels and 256 hidden ones."""
    parent = random_parent(hidden_size=192, intermediate_size=256, num_hidden_layers=1)
    module = child_of(parent, f"kv4+dip{percent}").get_submodule("model.layers.0.mlp")
    assert isinstance(module, PrunedFFN)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("percent", [10, 50, 90])
def test_a_gamma_of_1_chooses_what_the_model_does_whatever_is_cached(dtype: torch.dtype, percent: int) -> None:
    values_TN = (4 * activations(20, 192)).round().to(dtype)
    assert len(values_TN[0].abs().unique()) < 100, "no ties"
    module = pruned_ffn(percent)
    kept = module.kept_inputs
    expected = module.mask(values_TN, kept, "input_threshold").numpy()
    for policy, capacity in itertools.product(POLICIES, (0, 40, 120, 192)):
        assert np.array_equal(play(values_TN, Selection(kept), policy, capacity).masks_TN, expected)
    for value_N, mask in zip(values_TN, expected, strict=True):
        assert set(module.chosen(value_N, kept, "input_threshold").tolist()) == set(np.flatnonzero(mask).tolist())


@torch.no_grad()
def test_played_choices_give_the_models_output() -> None:
    """Both choices of an FFN, one after the other: with a gamma of 1 its own output, below it another."""
    module, input_TD = pruned_ffn(50), activations(20, 192)
    outputs = []
    for gamma in (1, 0.2):
        inputs = play(input_TD, Selection(module.kept_inputs, gamma), "lfu", 80)
        hidden_TF = module.activated(module.in_proj(input_TD * torch.from_numpy(inputs.masks_TN)))
        hidden = play(hidden_TF, Selection(module.kept_hidden, gamma), "lfu", 100)
        outputs.append(module.down_proj(hidden_TF * torch.from_numpy(hidden.masks_TN)))
    expected = module(input_TD[None])[0]
    assert torch.equal(outputs[0], expected)
    assert 0 < (outputs[1] - expected).norm() / expected.norm() < 0.5


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    gamma=st.sampled_from([0.05, 0.2, 0.5, 1.0]),
    data=st.data(),
)
def test_what_is_chosen_has_the_largest_weighed_magnitudes(sizes: list[int], gamma: float, data: st.DataObject) -> None:
    count = len(sizes)
    cached = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    kept = data.draw(st.integers(1, count))
    fixed = data.draw(st.integers(0, kept))
    mask = chosen(torch.tensor(sizes, dtype=torch.float64), Selection(kept, gamma, fixed), cached)
    assert mask.sum() == kept
    least_fixed = sorted(sizes, reverse=True)[fixed - 1] if fixed else np.inf
    assert all(mask[unit] for unit, size in enumerate(sizes) if size > least_fixed), "a fixed one is not chosen"
    # Some equals of the least fixed size are weighed and some are not: they are no evidence either way.
    weighed = {unit: size * (1 if cached[unit] else gamma) for unit, size in enumerate(sizes) if size < least_fixed}
    inside = [score for unit, score in weighed.items() if mask[unit]]
    outside = [score for unit, score in weighed.items() if not mask[unit]]
    assert min(inside, default=np.inf) >= max(outside, default=-np.inf)


def kept_energy(values_TN: torch.Tensor, masks_TN: Masks) -> NDArray[np.float64]:
    """The share of the sum of squared activations that each token kept, [T]."""
    energy_TN = values_TN.double().square().numpy()
    share_T: NDArray[np.float64] = (energy_TN * masks_TN).sum(1) / energy_TN.sum(1)
    return share_T


def test_cached_units_are_preferred_within_gamma_and_values_stay_as_they_are() -> None:
    sizes = torch.tensor([10.0, 6.0, 5.0, 4.0, 1.0])
    cached = bits("00111")[0]
    assert spelt(chosen(sizes, Selection(2), cached)) == "11000"
    assert spelt(chosen(sizes, Selection(2, 0.6), cached)) == "10100"
    assert spelt(chosen(sizes, Selection(2, 0.2), cached)) == "00110"
    assert spelt(chosen(sizes, Selection(2, 0.2, fixed_top=1), cached)) == "10100"
    assert spelt(cached) == "00111"
    assert sizes.tolist() == [10, 6, 5, 4, 1]
    # The energy kept is that of the activations: 4 + 9 of 1 + 4 + 9, weighed nowhere.
    values_TN = torch.tensor([[1.0, -2.0, 3.0]] * 2)
    played = play(values_TN, Selection(2, 0.01), "lfu", 3)
    assert kept_energy(values_TN, played.masks_TN) == pytest.approx([13 / 14] * 2)
    assert (played.hits_T.tolist(), played.misses_T.tolist()) == ([0, 2], [2, 0])


def test_falling_gamma_trades_kept_energy_for_hits() -> None:
    """Half of 2048 channels kept, 45 % cached; the numbers are those the paper's rule gave elsewhere."""
    values_TN = activations(300, 2048)
    played = [play(values_TN, Selection(1024, gamma), "lfu", int(0.45 * 2048)) for gamma in (1, 0.5, 0.2, 0.05)]
    hits = [each.hits_T.sum() / each.masks_TN.sum() for each in played]
    energies = [kept_energy(values_TN, each.masks_TN).mean() for each in played]
    assert hits == sorted(hits)
    assert energies == sorted(energies, reverse=True)
    assert hits == pytest.approx([0.57, 0.69, 0.79, 0.87], abs=0.01)
    assert energies == pytest.approx([0.983, 0.978, 0.967, 0.953], abs=0.001)
    assert all((each.masks_TN.sum(1) == 1024).all() for each in played)


@pytest.mark.parametrize("gamma", [0.02, 0.3, 0.9])
def test_nothing_keeps_more_energy_than_the_plain_choice(gamma: float) -> None:
    values_TN = activations(50, 64)
    plain, choosy = (play(values_TN, Selection(20, value), "lfu", 30).masks_TN for value in (1.0, gamma))
    assert (kept_energy(values_TN, choosy) <= kept_energy(values_TN, plain) + 1e-12).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cache_of_everything_misses_a_unit_once(policy: str) -> None:
    played = play(activations(80, 64), Selection(20), policy, 64)
    seen = np.zeros(64, dtype=np.bool_)
    for mask, hits, misses in zip(played.masks_TN, played.hits_T, played.misses_T, strict=True):
        assert hits == (0 if policy == "none" else (mask & seen).sum())
        assert hits + misses == 20
        seen |= mask
    assert played.hits_T[0] == 0


def test_each_sequence_starts_with_an_empty_cache() -> None:
    values_TN = activations(30, 64)
    first, second = (play(values_TN, Selection(20, 0.3), "lru", 15, seed=3) for _ in range(2))
    assert np.array_equal(first.masks_TN, second.masks_TN)
    assert np.array_equal(first.hits_T, second.hits_T)


def test_wrong_choices_are_refused() -> None:
    for gamma in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="gamma"):
            Selection(2, gamma)
    for kept, fixed in ((0, 0), (2, 3), (2, -1)):
        with pytest.raises(ValueError, match="kept"):
            Selection(kept, fixed_top=fixed)
    with pytest.raises(ValueError, match="one token"):
        chosen(torch.ones(2, 5), Selection(2), bits("00000")[0])
    with pytest.raises(ValueError, match="finite"):
        play(torch.tensor([[1.0, float("nan")]]), Selection(1), "lfu", 1)
    with pytest.raises(ValueError, match=r"tokens, units\]; these are \[3, 2, 5\]"):
        play(torch.ones(3, 2, 5), Selection(1), "lfu", 1)
    with pytest.raises(ValueError, match=r"gamma of 0\.5"):
        play(torch.ones(2, 5), Selection(1, 0.5), "belady", 1)
