"""Times known to be bad, in whole searches: never used without a word, taken again alone, and all of them on demand."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from searches import Here, job, rows, the_error
from stored import add_measured, add_search, add_trial

from blocklib.block import Choice
from cost_models.hardware import usable_cores
from db.store import Store
from nas.solve.predicted import predict_again
from nas.solve.solve import Measured, measured

TIMED = {"latency": "99%"}
"""A budget that limits a time, and that nearly any child meets."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "nas.db")


@pytest.fixture
def known(store: Store, tmp_path: Path) -> Measured:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    return measured(store, search)


# From the store alone


def test_trials_are_predicted_again_from_other_costs_and_lose_their_proofs(store: Store, known: Measured) -> None:
    trial = add_trial(store, known.search, "latency=60%", 1.05)
    assert predict_again(store, known) == 0
    assert store.trial(trial.id) == trial
    costs = [cost for option in store.options(known.search.id) for cost in option.costs or ()]
    for cost in costs:
        cost.prefill_s, cost.prefill_error_s, cost.decode_error_s, cost.contention = 2 * cost.prefill_s, 1e-5, 0.0, 0.4
    store.replace_costs(costs)
    search = store.find_search(known.search.id)
    assert "fixed" not in search.parent_costs, "nobody solves with a mixture of old costs and new"
    search.parent_costs = known.search.parent_costs
    again = measured(store, store.add_search(search))
    assert predict_again(store, again) == 1
    found = store.trial(trial.id)
    parts_s = trial.predicted_latency_s - known.fixed.prefill_s
    assert found.predicted_latency_s == pytest.approx(known.fixed.prefill_s + 2 * parts_s)
    assert found.predicted_latency_error_s == pytest.approx(1e-5 * len(trial.details["choices"]))
    assert found.predicted_contention == 0.4
    assert (found.gap, found.bound, found.status, found.score) == (None, None, "feasible", trial.score)
    assert found.latency_s == trial.latency_s, "what was measured of it is so"
    assert predict_again(store, again) == 0


def test_a_trial_of_before_a_metric_gets_it_and_keeps_its_proof(store: Store, known: Measured) -> None:
    trial = add_trial(store, known.search, "latency=60%", 1.05)
    store.update_trial(trial.id, predicted_file_bytes=None)
    assert predict_again(store, known) == 0
    assert store.trial(trial.id) == trial


# Whole searches


def changed(home: Path, statement: str) -> None:
    with sqlite3.connect(home / "nas.db") as connection:
        connection.execute(statement)
    connection.close()


def costs(home: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows(home, "cost")}


def measured_in_the_last_run(home: Path) -> int:
    return [int(row["work_done"]) for row in rows(home, "stage") if row["name"] == "measure"][-1]


def loose(**measure: Any) -> dict[str, Any]:
    """As the search was run, so that its times are found again."""
    return {"tolerance": 0.2, "time_limit": "1 s", "patience": "60 s"} | measure


@pytest.mark.slow
def test_only_what_is_bad_is_taken_again_and_only_for_a_budget_that_limits_times(copy: Path, here: Here) -> None:
    home = copy / "home"
    # However busy the machine was.
    changed(home, "UPDATE cost SET spread = 0.01, contention = 0")
    before = costs(home)
    widths = sorted((name for name in before if name.startswith("ffn.ffn")), key=lambda name: int(name[7:]))
    narrow = widths[0]
    assert len(widths) > 1
    changed(home, f"UPDATE cost SET spread = 5, prefill_s = 1000 * prefill_s WHERE name = '{narrow}'")
    bad = costs(home)[narrow]

    done = here(home, "search", job(copy, measure=loose()))
    assert done.returncode == 0, done.stderr
    assert costs(home)[narrow] == bad, "parameters are counted, whatever its times are"
    uncertain = "1 of 5 times are uncertain: a model made of the worst alone would have a standard error of 500%"
    assert uncertain in done.stdout
    assert "nas search JOB --remeasure" in done.stdout
    assert measured_in_the_last_run(home) == 0

    done = here(home, "search", job(copy, measure=loose(), budget=TIMED))
    assert done.returncode == 0, done.stderr
    assert measured_in_the_last_run(home) == 1
    after = costs(home)
    assert {name for name in after if after[name]["created_at"] != before[name]["created_at"]} == {narrow}
    assert after[narrow]["prefill_s"] < bad["prefill_s"] / 10
    assert after[narrow]["spread"] <= 1
    (search,) = rows(home, "search")
    assert "fixed" in json.loads(search["parent_costs"])


@pytest.mark.slow
def test_where_the_own_parts_are_bad_all_is_taken_again_and_nothing_is_scaled_to_them(copy: Path, here: Here) -> None:
    home = copy / "home"
    changed(home, "UPDATE cost SET prefill_s = 1000 * prefill_s, decode_s = 1000 * decode_s")
    changed(home, "UPDATE cost SET spread = 0.01, contention = 0")
    changed(home, "UPDATE cost SET spread = 5 WHERE name = 'fixed'")
    poisoned = costs(home)
    done = here(home, "search", job(copy, measure=loose(), budget=TIMED))
    assert done.returncode == 0, done.stderr
    after = costs(home)
    assert measured_in_the_last_run(home) == len([row for row in rows(home, "cost") if row["name"] != "skip"])
    for name, row in after.items():
        assert row["prefill_s"] <= poisoned[name]["prefill_s"] / 10, name


@pytest.mark.slow
def test_remeasuring_replaces_all_times_and_what_was_summed_of_them(copy: Path, here: Here) -> None:
    home = copy / "home"
    changed(home, "UPDATE cost SET prefill_s = 1000 * prefill_s, decode_s = 1000 * decode_s")
    changed(home, "UPDATE trial SET predicted_latency_s = 1000 * predicted_latency_s, contention = NULL")
    poisoned = costs(home)
    done = here(home, "search", copy / "job.yaml", "--remeasure")
    assert done.returncode == 0, done.stderr
    after = costs(home)
    assert all(row["prefill_s"] <= poisoned[name]["prefill_s"] / 10 for name, row in after.items())
    with Store.open(home / "nas.db") as store:
        (search,), (trial,) = store.searches(), store.trials()
        known = measured(store, search)
    assert trial.predicted_latency_s == pytest.approx(
        known.predicted(map(Choice.parse, trial.choices))["predicted_latency_s"]
    )
    parent_s = sum(after[str(part)]["prefill_s"] for part in ["fixed", *known_own(known)])
    assert known.parent.prefill_s == pytest.approx(parent_s)
    assert trial.contention is not None, "the child's times had an unknown contention, and are measured again"
    assert trial.status == "optimal"


def known_own(known: Measured) -> Iterator[str]:
    for block in known.search.parent_architecture.split():
        attention, ffn = block.split("+")
        yield from (f"attention.{attention}", f"ffn.{ffn}")


@contextmanager
def busy() -> Iterator[None]:
    """Every core is wanted by another program as well."""
    endless = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(usable_cores())]
    try:
        yield
    finally:
        for program in endless:
            program.kill()
            program.wait()


@pytest.mark.slow
def test_a_search_on_a_busy_machine_stops_for_that_and_goes_on_when_it_may(copy: Path, here: Here) -> None:
    home = copy / "home"
    ask = {"worst_spread": 100.0, "patience": "5 s"}
    strict = job(copy, measure=loose(worst_contention=0.01, **ask), budget=TIMED)
    with busy():
        done = here(home, "search", strict, "--remeasure")
    assert done.returncode == 1
    error = the_error(done.stderr)
    assert "too noisy for this budget" in error
    assert "a CPU contention of " in error
    assert "at most 1% is allowed" in error
    assert "measure.worst_contention" in error
    assert [search["status"] for search in rows(home, "search")] == ["failed"]
    kept = costs(home)
    assert max(row["contention"] for row in kept.values()) > 0.01

    done = here(home, "search", job(copy, measure=loose(worst_contention=1.0, **ask), budget=TIMED))
    assert done.returncode == 0, done.stderr
    assert measured_in_the_last_run(home) == 0, "as they are, since that is allowed now"
    assert costs(home) == kept
    said = "other programs kept up to "
    assert said in done.stdout
    again = here(home, "search", copy / "job.yaml")
    assert said in again.stdout, "it is no less so in the second run"


@pytest.mark.slow
def test_a_new_time_is_not_kept_where_the_parents_own_are_too_noisy_to_compare(copy: Path, here: Here) -> None:
    home = copy / "home"
    changed(home, "UPDATE cost SET spread = 0.01, contention = 0")
    changed(home, "DELETE FROM cost WHERE name = 'attention.kv1'")
    before = costs(home)
    asked = loose(worst_spread=100.0, worst_contention=0.01, patience="1 s")
    with busy():
        done = here(home, "search", job(copy, measure=asked, budget=TIMED))
    assert done.returncode == 1
    error = the_error(done.stderr)
    assert "fixed has a CPU contention of " in error
    assert "no time of this run is kept" in error
    assert "good times are kept" not in error
    assert costs(home) == before
