"""Sums of costs beside whole architectures that were timed. Times are made up, or nobody looks at them."""

import json
from pathlib import Path

import pytest
from conftest import EMBEDDED
from held_device import held_until_told
from searches import Here, job, rows
from stored import add_measured, add_search

import nas
from blocklib.block import Architecture
from cost_models.timing.prediction_error import prediction_error
from db import models
from db.store import Store
from nas.solve.solve import Measured, measured
from nas.solve.whole_times import cost_check
from nas.stages.time_architectures import random_architectures


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "nas.db")


@pytest.fixture
def known(store: Store, tmp_path: Path) -> Measured:
    search = add_search(store, tmp_path, generated_tokens=5)
    add_measured(store, search)
    return measured(store, search)


def timed(known: Measured, architecture: str, factor: float, take: int = 0) -> models.WholeTimeRow:
    """As if it had taken `factor` times its prediction, on a machine half as fast as on the day of the costs."""
    cost = sum((known.costs[choice] for choice in Architecture.parse(architecture).choices()), known.fixed)
    return models.WholeTimeRow(
        search_id=known.search.id, architecture=architecture, take=take, prefill_spread=0.01, contention=0.1 * take,
        prefill_s=2 * factor * cost.prefill_s, parent_prefill_s=2 * known.parent.prefill_s,
        decode_s=2 * factor * cost.decode_s, parent_decode_s=2 * known.parent.decode_s, decode_spread=0.01,
    )  # fmt: skip


def parent_of(known: Measured) -> Architecture:
    return Architecture.parse(known.search.parent_architecture)


def test_errors_are_of_shares_of_the_parents_time(store: Store, known: Measured) -> None:
    texts = list(random_architectures(known.costs, parent_of(known), 4, seed=0))
    for text, factor in zip(texts, (1.0, 1.0, 1.25, 1.0), strict=True):
        store.add_whole_time(timed(known, text, factor))
        store.add_whole_time(timed(known, text, factor * 1.1, take=1))
    found = cost_check(known, store.whole_times(known.search.id))
    assert found is not None
    assert [whole.error for whole in found.wholes] == pytest.approx([1 / 1.05 - 1] * 2 + [0.8 / 1.05 - 1, 1 / 1.05 - 1])
    assert found.error.worst == pytest.approx(0.8 / 1.05 - 1)
    assert found.error.bias == pytest.approx(-found.error.mape)
    assert found.repeats is not None
    assert found.repeats.mape == pytest.approx(0.1)
    assert found.repeats.tau == 1.0
    assert found.phases["prefill"].mape == pytest.approx(found.phases["decode"].mape)
    assert {whole.contention for whole in found.wholes} == {0.1}


def test_of_two_processes_that_time_one_architecture_the_first_is_kept(store: Store, known: Measured) -> None:
    text = known.search.parent_architecture
    for factor in (1.0, 2.0):
        store.add_whole_time(timed(known, text, factor))
    (kept,) = store.whole_times(known.search.id)
    assert kept.prefill_s == pytest.approx(2 * known.parent.prefill_s)


def test_nothing_timed_is_no_check(known: Measured) -> None:
    assert cost_check(known, []) is None
    correcting = timed(known, known.search.parent_architecture, 1.0)
    correcting.corrects = True
    assert cost_check(known, [correcting]) is None


def test_architectures_are_distinct_and_of_the_searchs_options(known: Measured) -> None:
    found = random_architectures(known.costs, parent_of(known), 30, seed=1)
    assert len(found) == 30
    for text, one in found.items():
        assert text == str(one)
        assert one.layers == known.layers
        assert set(one.choices()) <= set(known.costs)
    assert found == random_architectures(known.costs, parent_of(known), 30, seed=1)
    assert found != random_architectures(known.costs, parent_of(known), 30, seed=2)


def test_an_error_is_a_share_of_the_value_and_tau_counts_pairs() -> None:
    found = prediction_error([1.1, 1.8, 3.0], [1.0, 2.0, 3.0])
    assert (found.mape, found.bias, found.worst) == pytest.approx((0.2 / 3, 0.0, 0.1))
    assert found.tau == 1.0
    assert prediction_error([2.0, 1.0, 3.0], [1.0, 2.0, 3.0]).tau == pytest.approx(1 / 3)
    assert prediction_error([1.0], [2.0]).tau is None
    with pytest.raises(ValueError, match="no prediction"):
        prediction_error([], [])


@pytest.mark.skipif(not (EMBEDDED / "model.safetensors").is_file(), reason="no trained parent")
def test_a_search_is_checked_once(copy: Path, here: Here) -> None:
    home = copy / "home"
    assert here(home, "costs", "check", "tiny", "--children", "0").returncode == 2
    done = here(home, "costs", "check", "tiny", "--children", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [len(whole["timed"]) for whole in found["wholes"]] == [2, 2]
    assert found["repeats"]["mape"] >= 0
    kept = rows(home, "whole_time")
    assert len(kept) == 4
    again = here(home, "costs", "check", "tiny", "--children", "2")
    assert rows(home, "whole_time") == kept
    assert "a repeated timing of latency: mean absolute error" in again.stdout
    assert here(home, "report", "tiny", "--out", copy / "report.html").returncode == 0
    assert "a repeated timing of latency" in (copy / "report.html").read_text()


@pytest.mark.skipif(not (EMBEDDED / "model.safetensors").is_file(), reason="no trained parent")
def test_a_wait_for_another_search_is_told(copy: Path) -> None:
    told: list[str] = []
    with held_until_told(told) as heard:
        nas.load("tiny", db=copy / "home/nas.db", progress=heard).check_costs(1)
    assert [line for line in told if line.startswith("time whole architectures: waiting: another search (process ")]


@pytest.mark.skipif(not (EMBEDDED / "model.safetensors").is_file(), reason="no trained parent")
@pytest.mark.usefixtures("ray_here")
def test_whole_models_are_timed_once_and_half_of_them_correct_costs(copy: Path, here: Here) -> None:
    """A small job on a busy machine: whether the corrected costs are better is not known, only that both are there."""
    home = copy / "home"
    corrected = job(
        copy,
        measure={"tolerance": 0.2, "time_limit": "1 s", "worst_contention": 1.0, "whole_models": 6},
        name="whole",
        heal=False,
    )
    done = here(home, "search", corrected)
    assert done.returncode == 0, done.stderr
    assert "3 whole models: sums of costs are" in done.stdout + done.stderr
    timed = rows(home, "whole_time")
    assert [row["corrects"] for row in timed].count(1) == 3
    assert len({row["architecture"] for row in timed}) == 6
    trial = rows(home, "trial")[-1]
    again = here(home, "search", corrected)
    assert again.returncode == 0, again.stderr
    assert rows(home, "whole_time") == timed
    assert rows(home, "trial")[-1] == trial
    checked = here(home, "costs", "check", "whole", "--children", "0", "--json")
    assert checked.returncode == 0, checked.stderr
    assert len(json.loads(checked.stdout)["wholes"]) == 3, "those that correct costs check nothing"
    assert here(home, "costs", "check", "whole", "--children", "1").returncode == 0
    check = rows(home, "whole_time")[len(timed) :]
    assert here(home, "search", corrected, "--remeasure").returncode == 0
    after = rows(home, "whole_time")
    assert after[: len(check)] == check, "only those that are for correcting are taken again"
    assert {row["architecture"] for row in after[len(check) :]} == {row["architecture"] for row in timed}
    assert after[len(check) :] != timed


@pytest.mark.skipif(not (EMBEDDED / "model.safetensors").is_file(), reason="no trained parent")
@pytest.mark.usefixtures("ray_here")
def test_a_table_from_elsewhere_gives_the_answer_of_the_machine_that_measured_it(copy: Path, here: Here) -> None:
    """The machine that measured is this one, and its search is done: the table holds its very times."""
    home, table = copy / "home", copy / "costs.json"
    done = here(home, "costs", "export", "tiny", "--out", str(table))
    assert done.returncode == 0, done.stderr
    given = job(copy, measure={"table": str(table)}, name="given", heal=False)
    done = here(home, "search", given, "--json")
    assert done.returncode == 0, done.stderr
    first, *_, second = rows(home, "trial")
    assert first["search_id"] != second["search_id"]
    assert second["architecture"] == first["architecture"]
    assert second["predicted_latency_s"] == first["predicted_latency_s"]
    assert second["latency_s"] is None, "nothing is timed here"
    held = json.loads(table.read_text())
    table.write_text(json.dumps(held | {"shape": held["shape"] | {"hidden": 7}}))
    refused = here(home, "search", given)
    assert refused.returncode == 1
    assert "it was measured for another parent: hidden 7, not" in refused.stderr
    del held["geometries"]["attention.kv1"]
    table.write_text(json.dumps(held))
    refused = here(home, "search", given)
    assert refused.returncode == 1
    assert "no times of attention.kv1" in refused.stderr
