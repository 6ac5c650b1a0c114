"""Costs of a machine that streams from Flash: by hand where a formula says them, and a whole search on it."""

from dataclasses import replace
from pathlib import Path

import pytest
from parents import random_ids, random_parent
from searches import job, nas, rows

from blocklib.block import Choice, Subblock
from cost_models.analytic import choice_cost, fixed_cost
from cost_models.flash.flash import MemoryHierarchy
from cost_models.geometry import FIXED, Geometry
from cost_models.scenario import Scenario
from nas.job.config import parse
from nas.stages.flash_costs import simulate

SCENARIO = Scenario("cpu", "float32", batch=1, prompt_tokens=8, generated_tokens=8)
PLENTY = MemoryHierarchy(1e9, 1e6, 1e4)


def ffn(spelling: str) -> Geometry:
    return Geometry("ffn", Subblock.parse(spelling))


def simulated(hierarchy: MemoryHierarchy, *wanted: Geometry) -> dict[Geometry, float]:
    parent = random_parent()
    found = simulate(parent, wanted, SCENARIO, hierarchy, random_ids(parent, 2, 32))
    return {one.geometry: one.decode_s for one in found}


def static_bytes() -> float:
    parent = random_parent()
    attention = choice_cost(parent.architecture.choices()[0], parent.shape, SCENARIO)
    return fixed_cost(parent.shape, SCENARIO).weight_bytes + 6 * (attention.weight_bytes + attention.cache_bytes)


def bytes_of(spelling: str) -> int:
    return choice_cost(Choice.parse(f"L0.ffn={spelling}"), random_parent().shape, SCENARIO).weight_bytes


def test_with_dram_for_all_every_byte_is_read_from_it() -> None:
    found = simulated(PLENTY, ffn("ffn48"), ffn("ffn12"), Geometry("attention", Subblock.parse("kv4")))
    for spelling in ("ffn48", "ffn12"):
        assert found[ffn(spelling)] == pytest.approx(bytes_of(spelling) / 1e6)
    head = random_parent().shape.vocabulary * 32 + 32
    assert found[FIXED] == pytest.approx(4 * head / 1e6)


def test_what_an_ffns_share_does_not_hold_is_streamed() -> None:
    whole = bytes_of("ffn48")
    half = MemoryHierarchy(static_bytes() + 6 * whole / 2, 1e6, 1e4)
    found = simulated(half, ffn("ffn48"), ffn("ffn12"), ffn("moe4x12k1"))
    assert found[ffn("ffn48")] == pytest.approx(whole / 2 / 1e6 + whole / 2 / 1e4)
    assert found[ffn("ffn12")] == pytest.approx(bytes_of("ffn12") / 1e6)
    assert found[ffn("moe4x12k1")] < found[ffn("ffn48")] / 3


def test_pruning_pays_where_the_model_does_not_fit_and_a_cache_more_so() -> None:
    half = MemoryHierarchy(static_bytes() + 6 * bytes_of("ffn48") / 2, 1e6, 1e4)
    dense = simulated(half, ffn("ffn48"))[ffn("ffn48")]
    plain = simulated(half, ffn("dip50"))[ffn("dip50")]
    eager = simulated(replace(half, gamma=0.2), ffn("dip50"))[ffn("dip50")]
    without = simulated(replace(half, policy="none"), ffn("dip50"))[ffn("dip50")]
    assert eager < plain < dense
    assert plain < without


def test_a_cache_as_large_as_the_ffn_streams_each_unit_once() -> None:
    """Played from empty: the first token misses, and later ones only what nobody asked for before."""
    found = simulated(PLENTY, ffn("dip100"))[ffn("dip100")]
    tokens, whole = 32, bytes_of("dip100")
    units = 3 * 32 * 48 * 4
    always = whole - units
    by_hand = always / 1e6 + (units / 1e4 + (tokens - 1) * units / 1e6) / tokens
    assert found == pytest.approx(by_hand)


def test_a_job_names_the_machine() -> None:
    text = "parent: embedded\ndata: {train: stdlib}\nbudget: {decode: 60%}\n"
    flash = "{dram: 2 GB, dram_speed: 60 GB/s, flash_speed: 1 GB/s, gamma: 0.2}"
    asked = parse(f"{text}name: x\nscenario: {{batch: 1, generated_tokens: 8, flash: {flash}}}", "job.yaml").scenario
    assert asked.flash is not None
    assert (asked.flash.dram, asked.flash.dram_speed, asked.flash.policy) == (2e9, 60e9, "lfu")
    with pytest.raises(ValueError, match=r"scenario\.batch: 16 sequences at once"):
        parse(f"{text}name: x\nscenario: {{generated_tokens: 8, flash: {flash}}}", "job.yaml")


@pytest.mark.slow
def test_a_further_option_is_simulated_beside_those_that_are_known(tmp_path: Path) -> None:
    flash = {"dram": "2 GB", "dram_speed": "60 GB/s", "flash_speed": "1 GB/s"}
    sections = {
        "scenario": {"batch": 1, "prompt_tokens": 16, "generated_tokens": 4, "threads": 1, "flash": flash},
        "budget": {"decode": "95%"}, "distill": {"tokens": 0}, "heal": None,
    }  # fmt: skip
    for ffn in (["50%"], ["50%", "25%"]):
        space = {"attention": [], "ffn": ffn, "fuse": None, "drop_blocks": False}
        done = nas(tmp_path / "home", "search", job(tmp_path, space=space, **sections))
        assert done.returncode == 0, done.stderr
    times = [row["decode_s"] for row in rows(tmp_path / "home", "cost") if row["name"].startswith("ffn")]
    assert len(times) == 3
    assert all(seconds > 0 for seconds in times)
