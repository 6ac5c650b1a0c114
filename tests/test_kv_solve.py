"""A search that chooses the type of keys and values, solved from its rows: the best type for each budget."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import rows
from stored import LAYERS, add_measured, add_search, choices

from blocklib.block import CACHE, Architecture, Choice
from db import models
from db.store import Store
from nas.errors import BudgetNotMetError
from nas.job.units import parse_budget
from nas.solve.explain import explain
from nas.solve.front import front_of
from nas.solve.pool import Wanted, alternatives
from nas.solve.predicted import predict_again
from nas.solve.solve import Measured, measured, proposed, solve
from nas.view.trial import layers_of

SAVED = {"f16": 0, "q8_0": 150, "q4_0": 250}
"""Bytes that an attention with keys and values needs less in each type."""
HARM = {"f16": 1e-6, "q8_0": 1e-3, "q4_0": 2e-2}
BUDGETS = ("memory=100%", "memory=92%", "memory=85%", "memory=70%", "latency=80%", "latency=60%,memory=60%")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("types") / "nas.db") as opened:
        yield opened


@pytest.fixture(scope="module")
def together(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A search that chooses among all types."""
    return add_types(store, tmp_path_factory.mktemp("together"), list(SAVED))


@pytest.fixture(scope="module")
def alone(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measured]:
    """The same search with one type, for each."""
    return {name: add_types(store, tmp_path_factory.mktemp(name), [name]) for name in SAVED}


def add_types(store: Store, tmp_path: Path, names: list[str]) -> Measured:
    """A search of its own name with these types, each of which takes a tenth longer than the one before."""
    search = add_search(store, tmp_path)
    search.id = search.name = "-".join(names)
    search = store.add_search(search)
    add_measured(store, search)
    kept = [choice for choice in choices() if choice.role == "attention" and str(choice.what).startswith("kv")]
    known = store.costs([f"cost {choice}" for choice in kept])
    found = []
    for name in names:
        cache = Choice(LAYERS, "cache", CACHE.at(name))
        slower = 1 + 0.1 * list(SAVED).index(name)
        typed = [] if name == "f16" else [f"cost {choice} {cache.what}" for choice in kept]
        store.add_costs([
            rows.cost(key, name=key.removeprefix("cost "), prefill_s=slower * row.prefill_s, decode_s=0.0,
                      parameters=100, weight_bytes=row.weight_bytes - SAVED[name])
            for key, row in zip(typed, map(known.__getitem__, (f"cost {choice}" for choice in kept)), strict=False)
        ])  # fmt: skip
        store.add_scores([rows.score(f"score {cache}", choice=str(cache), kl=HARM[name], lm_loss=HARM[name])])
        found.append(
            models.OptionRow(
                search_id=search.id,
                choice=str(cache),
                first_slot=cache.first_slot,
                span=cache.span,
                name=str(cache.what),
                score_key=f"score {cache}",
                cost_keys=typed,
            )
        )
    store.set_options(search.id, [*(known.option for known in store.options(search.id)), *found])
    return measured(store, search)


@pytest.mark.parametrize("is_plain", [False, True], ids=["any", "plain"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_best_of_all_types_is_the_best_of_each_alone(
    budget: str, is_plain: bool, store: Store, together: Measured, alone: dict[str, Measured]
) -> None:
    limits, together = parse_budget(budget), replace(together, is_plain=is_plain)
    scores = {}
    for name, known in alone.items():
        try:
            scores[name] = solve(replace(known, is_plain=is_plain), limits).score
        except BudgetNotMetError:
            continue
    best = min(scores, key=lambda name: scores[name])
    found = solve(together, limits)
    trial = proposed(store, together, found, limits)
    assert Architecture.parse(trial.architecture).cache == best
    assert found.score == pytest.approx(scores[best]) == trial.score
    assert found.status == "optimal"
    assert together.totals(found)["memory_bytes"] == trial.predicted_memory_bytes
    assert trial.predicted_latency_s == pytest.approx(together.totals(found)["latency_s"])
    assert trial.choices[-1] == f"L{LAYERS}.cache=cache@{best}"
    explained = explain(store, together, limits, found, trial)
    assert explained.explained is not None
    assert not predict_again(store, together), "its costs are those of its type"
    (line,) = (line for line in layers_of(store, together.search, trial) if line.place == "cache")
    own = together.search.scenario["dtype"]
    assert (line.parent, line.child, line.score) == (f"cache@{own}", f"cache@{best}", HARM[best])


def test_a_tighter_limit_takes_a_smaller_type(together: Measured) -> None:
    front = front_of(together, "memory", (), 12)
    types = [Architecture.parse(point.architecture).cache for point in front]
    assert types[-1] == "f16"
    assert {"q8_0", "q4_0"} & set(types)
    assert [point.cost for point in front] == sorted(point.cost for point in front)


def test_answers_of_a_pool_may_differ_in_the_type(store: Store, together: Measured) -> None:
    found = alternatives(store, together, parse_budget("memory=100%"), Wanted(3)).found
    assert [Architecture.parse(one.trial.architecture).cache for one in found[:2]] == ["f16", "q8_0"]
    assert found[1].trial.score == pytest.approx(HARM["q8_0"])


def test_without_types_a_search_is_one_question(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    known = measured(store, search)
    assert list(known.questions(parse_budget("latency=80%"))) == [""]
    assert not Architecture.parse(proposed(store, known, solve(known, ()), ()).architecture).cache
