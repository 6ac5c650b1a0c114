"""The store's promises about its rows, on every database it runs on."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from rows import cost, distillation, score, search, stage, trial, tune_trial
from sqlalchemy import Double, exc

from db.errors import RowError
from db.models import (
    Base,
    CostRow,
    DistillationRow,
    FailureRow,
    OptionRow,
    ScoreRow,
    SearchRow,
    StageRow,
    TrialRow,
    now,
)
from db.store import Store

pytest_plugins = ["databases"]


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


# Measured things


def test_a_measured_thing_comes_back_as_it_went_in(store: Store) -> None:
    rows = score(), cost(), distillation(loss_trained=0.1)
    store.add_scores([rows[0]])
    store.add_costs([rows[1]])
    store.add_distillations([rows[2]])
    assert store.scores({"s1", "unknown"}) == {"s1": rows[0]}
    assert store.costs(["c1"]) == {"c1": rows[1]}
    assert store.distillations(["b1", "b2"]) == {"b1": rows[2]}
    assert store.scores([]) == {}


def test_the_first_writer_of_a_key_wins(store: Store) -> None:
    store.add_scores([score(kl=0.25)])
    store.add_scores([score(kl=0.5), score("s2", kl=0.75), score("s2", kl=1.0)])
    store.add_scores([])
    assert {key: row.kl for key, row in store.scores(["s1", "s2"]).items()} == {"s1": 0.25, "s2": 0.75}


def test_the_first_trial_of_a_number_of_a_study_stays(store: Store) -> None:
    for row in (tune_trial(1, 1e-3, 0.5), tune_trial(0, 3e-3, None, state="pruned"), tune_trial(1, 9e-3, 0.1)):
        store.add_tune_trial(row)
    store.add_tune_trial(tune_trial(0, 2e-3, 0.4, study="s0"))
    store.add_tune_trial(tune_trial(0, 2e-3, 0.4, study="other", parent_digest="d2"))
    found = [(row.study, row.number, row.learning_rate, row.objective) for row in store.tune_trials("d1")]
    assert found == [("s0", 0, 2e-3, 0.4), ("s1", 0, 3e-3, None), ("s1", 1, 1e-3, 0.5)]
    with pytest.raises(RowError):
        store.add_tune_trial(tune_trial(2, 1e-3, float("inf")))


def test_thousands_of_keys_at_once(store: Store) -> None:
    keys = [f"s{i}" for i in range(3000)]
    store.add_scores([score(key) for key in keys])
    assert store.scores(keys).keys() == set(keys)


def test_moments_are_utc_whatever_zone_they_were_told_in(store: Store) -> None:
    moment = datetime(2026, 11, 1, 12, tzinfo=timezone(timedelta(hours=9)))
    store.add_scores([score(created_at=moment)])
    kept = store.scores(["s1"])["s1"].created_at
    assert kept == moment
    assert kept.tzinfo is UTC or kept.utcoffset() == timedelta(0)


# Searches


def test_adding_a_search_again_replaces_it_but_keeps_when_it_began(store: Store) -> None:
    first = store.add_search(search())
    again = store.add_search(search(name="renamed", status="finished", parent_costs={"latency_s": 2.0}))
    assert store.searches() == [again]
    assert (again.name, again.status, again.parent_costs) == ("renamed", "finished", {"latency_s": 2.0})
    assert again.created_at == first.created_at < again.updated_at


def test_what_removal_measured_stays_when_a_search_is_added_again(store: Store) -> None:
    store.add_search(search())
    store.set_removal("5ea5c4", {"influence": [0.5, 0.25], "rounds": [{"1": 2.0}]})
    again = store.add_search(search(name="renamed"))
    assert (again.name, again.removal) == ("renamed", {"influence": [0.5, 0.25], "rounds": [{"1": 2.0}]})
    with pytest.raises(RowError, match=r"search 5ea5c4, column removal.influence\[0\]: nan"):
        store.set_removal("5ea5c4", {"influence": [math.nan]})


def test_a_search_has_one_of_four_statuses(store: Store) -> None:
    before = store.add_search(search())
    store.set_search_status(before.id, "interrupted")
    after = store.find_search(before.id)
    assert (before.status, after.status) == ("running", "interrupted")
    assert after.updated_at > before.updated_at
    with pytest.raises(exc.IntegrityError):
        store.set_search_status(before.id, "lost")
    with pytest.raises(ValueError, match="no search has the id 'nope'"):
        store.set_search_status("nope", "failed")


def test_a_search_is_found_by_id_by_name_and_by_the_beginning_of_its_id(store: Store) -> None:
    old, new = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    store.add_search(search("aa11", name="llama", updated_at=new))
    store.add_search(search("aa22", name="llama", updated_at=old))
    store.add_search(search("bb33", name="aa", updated_at=old))
    assert store.find_search("aa22").id == "aa22"
    assert store.find_search("llama").id == "aa11"
    assert store.find_search("b").id == "bb33"
    assert store.find_search("aa").id == "bb33", "a whole name beats the beginning of an id"
    with pytest.raises(ValueError, match="'a' begins several ids: aa11, aa22"):
        store.find_search("a")
    with pytest.raises(ValueError, match="no search 'lama'; there is llama"):
        store.find_search("lama")
    with pytest.raises(ValueError, match="no search ''"):
        store.find_search("")


def test_nothing_is_found_in_an_empty_store(store: Store) -> None:
    with pytest.raises(ValueError, match=r"there is none yet in sqlite:///|there is none yet in postgresql"):
        store.find_search("x")
    assert (store.searches(), store.trials(), store.stages("x"), store.failures("x"), store.options("x")) == ([],) * 5


# Options


def test_options_come_with_what_is_known_of_them_in_slot_order(store: Store) -> None:
    store.add_search(search())
    store.add_scores([score()])
    store.add_costs([cost()])
    store.add_distillations([distillation()])
    whole = OptionRow(search_id="5ea5c4", choice="L3.ffn=ffn256", first_slot=7, span=1, name="ffn ffn256")
    whole.score_key, whole.cost_keys, whole.distillation_key = "s1", ["c1"], "b1"
    bare = OptionRow(
        search_id="5ea5c4", choice="L0.ffn=skip", first_slot=1, span=1, name="ffn skip", cost_keys=["by hand"]
    )
    store.set_options("5ea5c4", [whole, bare])
    first, second = store.options("5ea5c4")
    assert (first.option, first.score, first.costs, first.distillation) == (bare, None, None, None)
    assert (second.option, second.score) == (whole, store.scores(["s1"])["s1"])
    assert second.costs is not None
    assert second.distillation is not None
    assert (second.costs[0].parameters, second.distillation.curve) == (7 * 10**10, [[0.0, 0.5]])

    store.set_options("5ea5c4", [bare])
    assert [known.option for known in store.options("5ea5c4")] == [bare]
    store.set_options("5ea5c4", [])
    assert store.options("5ea5c4") == []


def test_an_option_cannot_point_at_a_score_that_is_not_there(store: Store) -> None:
    store.add_search(search())
    kept = OptionRow(search_id="5ea5c4", choice="L0.ffn=skip", first_slot=1, span=1, name="ffn skip")
    store.set_options("5ea5c4", [kept])
    lost = OptionRow(search_id="5ea5c4", choice="L1.ffn=skip", first_slot=3, span=1, name="ffn skip", score_key="s9")
    with pytest.raises(exc.IntegrityError):
        store.set_options("5ea5c4", [lost])
    assert [known.option for known in store.options("5ea5c4")] == [kept], "the old ones stay when the new ones fail"


# Trials, stages, failures


def test_a_trial_is_added_once_and_filled_in_later(store: Store) -> None:
    store.add_search(search())
    added = store.add_trial(trial())
    assert store.add_trial(trial(score=0.9)) == added
    filled = store.update_trial(added.id, kl=0.02, memory_bytes=2**40, details={"fronts": [1, 2]}, child_path="/c")
    assert store.trial(added.id) == filled
    assert (filled.kl, filled.memory_bytes, filled.details, filled.score) == (0.02, 2**40, {"fronts": [1, 2]}, 0.1)
    assert store.update_trial(added.id) == filled
    assert added.kl is None, "what was returned before is cut loose"


def test_trials_of_one_child_share_what_is_measured_of_it(store: Store) -> None:
    store.add_search(search())
    first = store.add_trial(trial("t1", child_key="c", budget={"latency": "60%"}))
    store.update_trial(first.id, latency_s=0.5, kl=0.25, details={"parent": {"lm_loss": 2.0}, "metric": "kl"})
    other = store.add_trial(trial("t2", child_key="c", budget={"latency": "55%"}, details={"metric": "lm_loss"}))
    assert (other.latency_s, other.kl, other.lm_loss) == (0.5, 0.25, None)
    assert other.details == {"parent": {"lm_loss": 2.0}, "metric": "lm_loss"}
    assert other.budget == {"latency": "55%"}
    assert store.add_trial(trial("t3", child_key="d")).kl is None


def test_only_what_is_the_childs_comes_from_another_trial_of_it(store: Store) -> None:
    store.add_search(search())
    first = store.add_trial(trial("t1", child_key="c", bound=0.05, predicted_latency_s=2.0))
    theirs = {"lm_loss": 2.0, "latency_s": 3.0}
    store.update_trial(
        first.id, child_path="/x", details={"parent": theirs, "export_format": "hf", "choices": ["L0.ffn=skip"]}
    )
    own = {"parent": {"latency_s": 4.0}, "metric": "kl"}
    other = store.add_trial(trial("t2", child_key="c", details=own))
    assert other.details == {"parent": {"lm_loss": 2.0, "latency_s": 4.0}, "metric": "kl"}
    assert (other.bound, other.predicted_latency_s, other.child_path) == (None, 1.0, None)
    assert store.trial(other.id) == other, "kept, not only returned"


def test_what_was_measured_of_a_child_later_is_every_trials_that_is_it(store: Store) -> None:
    store.add_search(search())
    one, other = (store.add_trial(trial(key, child_key="c")) for key in ("t1", "t2"))
    for seconds, ratio in ((2.0, 0.6), (3.0, 0.7)):
        store.update_trial(one.id, latency_ratio=ratio, details={"parent": {"latency_s": seconds}})
        found = store.trial(other.id)
        assert (found.latency_ratio, found.details) == (ratio, {"parent": {"latency_s": seconds}})
        assert store.trial_with_twins(other.id) == found


@pytest.mark.parametrize("number", [10**26, -(10**26), 2**63, 2**63 - 1, -1, 0])
def test_no_trial_has_a_number_that_no_database_takes(store: Store, number: int) -> None:
    for ask in (store.trial, store.trial_with_twins, lambda number: store.delete_trials([number])):
        with pytest.raises(ValueError, match=f"no trial has the id {number}"):
            ask(number)
    assert store.trials(limit=10**26) == []


def test_details_are_put_into_those_there_are_now(store: Store) -> None:
    """Whoever writes some has read the row hours before; what others wrote in the meantime stays."""
    store.add_search(search())
    added = store.add_trial(
        trial(details={"metric": "kl", "parent": {"lm_loss": 2.0}, "solved_for": {"latency": "57%"}})
    )
    store.own_child_path(added.id, "/x", "hf")
    found = store.update_trial(added.id, details={"parent": {"latency_s": 4.0}, "solved_for": None})
    assert found.details == {"metric": "kl", "export_format": "hf", "parent": {"lm_loss": 2.0, "latency_s": 4.0}}
    assert store.trial(added.id) == found


def test_a_folder_holds_one_trials_child(store: Store) -> None:
    store.add_search(search())
    one, other = (store.add_trial(trial(key)) for key in ("t1", "t2"))
    assert store.own_child_path(one.id, "/x", "hf").child_path == "/x"
    assert store.own_child_path(other.id, "/x", "decilm").details["export_format"] == "decilm"
    assert [found.child_path for found in store.trials()] == [None, "/x"]
    assert store.own_child_path(other.id, "/x", "hf").child_path == "/x"


def test_a_trial_that_cannot_be_updated_says_why(store: Store) -> None:
    store.add_search(search())
    known = store.add_trial(trial()).id
    with pytest.raises(RowError, match=rf"trial {known}: there is no column latncy_s; there are id, key,.* latency_s"):
        store.update_trial(known, latncy_s=1.0)
    with pytest.raises(ValueError, match=rf"trial {known}: key never changes"):
        store.update_trial(known, key="other")
    for attempt in (lambda: store.update_trial(99, kl=1.0), lambda: store.trial(99)):
        with pytest.raises(ValueError, match="no trial has the id 99"):
            attempt()
    with pytest.raises(exc.IntegrityError):
        store.add_trial(trial("t2", search_id="unknown"))


def test_trials_are_filtered_sorted_and_limited(store: Store) -> None:
    store.add_search(search())
    store.add_search(search("other"))
    for key, kl in (("a", 0.3), ("b", None), ("c", 0.1), ("d", 0.2)):
        store.add_trial(trial(key, kl=kl, search_id="other" if key == "d" else "5ea5c4"))

    def keys(**asked: Any) -> str:
        return "".join(found.key for found in store.trials(**asked))

    assert keys() == "abcd"
    assert keys(descending=True) == "dcba"
    assert keys(sort="kl") == "cdab", "empty ones last"
    assert keys(sort="kl", descending=True) == "adcb", "empty ones last"
    assert keys(sort="solver", limit=2) == "ab", "in the order they were added where equal"
    assert keys(search_id="5ea5c4", where="kl > 0.1") == "a"
    with pytest.raises(ValueError, match="did you mean kl"):
        store.trials(sort="k1")


def test_stages_and_failures_are_kept_in_order(store: Store) -> None:
    store.add_search(search())
    stages = [store.add_stage(stage(name=name)) for name in ("space", "score")]
    assert store.stages("5ea5c4") == stages
    failures = [
        store.add_failure(FailureRow(search_id="5ea5c4", stage="score", place=place, reason="NaN"))
        for place in ("L3.ffn=ffn256", "L4.ffn=ffn256")
    ]
    store.add_failure(FailureRow(stage="start", place="worker 2", reason="gone"))
    assert store.failures("5ea5c4") == failures
    assert failures[0].id != failures[1].id


# Refused writes

ROWS = [search(), score(), cost(), distillation(), trial(), stage()]
FLOATS = [
    pytest.param(row, column.name, id=f"{column.table}.{column.name}")
    for row in ROWS
    for column in type(row).__table__.columns
    if isinstance(column.type, Double)
]


def write(store: Store, row: Base) -> None:
    match row:
        case SearchRow():
            store.add_search(row)
        case ScoreRow():
            store.add_scores([row])
        case CostRow():
            store.add_costs([row])
        case DistillationRow():
            store.add_distillations([row])
        case TrialRow():
            store.add_trial(row)
        case StageRow():
            store.add_stage(row)
        case _:
            raise AssertionError(row)


@pytest.fixture(scope="module")
def sqlite_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("db") / "nas.db") as opened:
        opened.add_search(search("5ea5c4"))
        yield opened


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("row", "column"), FLOATS)
def test_no_float_is_written_that_is_not_finite(sqlite_store: Store, row: Base, column: str, value: float) -> None:
    bad = type(row)(
        **{name: getattr(row, name) for name in (column.name for column in type(row).__table__.columns) if name != "id"}
    )
    setattr(bad, column, value)
    place = rf"{type(row).__tablename__} {getattr(row, 'key', 'new')}, column {column}: {value} is not a finite number"
    with pytest.raises(RowError, match=place):
        write(sqlite_store, bad)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (dict(details={"curve": [1.0, math.nan]}), r"column details.curve\[1\]: nan is not a finite number"),
        (dict(details={1: 2}), r"column details: the key 1 is a int, not a str"),
        (dict(details={"when": now()}), r"column details.when: .* is a datetime, which JSON does not have"),
        (dict(memory_bytes=np.int64(3)), "column memory_bytes: .* is a int64, not a int"),
        (dict(memory_bytes=3.0), "column memory_bytes: 3.0 is a float, not a int"),
        (dict(kl="0.1"), "column kl: '0.1' is a str, not a float"),
        (dict(kl=True), "column kl: True is a bool, not a float"),
        (dict(solver=None), "column solver: it is empty; every row needs it"),
        (dict(created_at=datetime(2026, 1, 1)), "column created_at: .* says no time zone"),
    ],
)
def test_no_value_is_written_that_would_come_back_as_another(
    sqlite_store: Store, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(RowError, match=f"trial t1, {message}"):
        sqlite_store.add_trial(trial(**columns))
    assert sqlite_store.trials() == []


def test_numpy_floats_are_floats(sqlite_store: Store) -> None:
    sqlite_store.add_scores([score("numpy", kl=np.float64(0.5), lm_loss=1)])
    kept = sqlite_store.scores(["numpy"])["numpy"]
    assert (kept.kl, kept.lm_loss) == (0.5, 1.0)
    assert (type(kept.kl), type(kept.lm_loss)) == (float, float)


def test_one_bad_row_keeps_the_whole_batch_out(store: Store) -> None:
    with pytest.raises(RowError, match="score s2, column kl"):
        store.add_scores([score("s1"), score("s2", kl=math.nan)])
    assert store.scores(["s1", "s2"]) == {}


def test_replaced_costs_stand_in_place_of_the_old_and_unsettle_whoever_used_them(url: str) -> None:
    parts = {"fixed": {"prefill_s": 1.0}, "whole": {"prefill_s": 2.0}}
    with Store.open(url) as store:
        for name, key in (("a", "c1"), ("b", "c2")):
            store.add_search(search(name, parent_costs=parts))
            store.set_options(name, [OptionRow(search_id=name, choice="L0.ffn=skip", first_slot=1, span=1, name="skip",
                                            cost_keys=[key])])  # fmt: skip
        store.add_costs([cost("c1", prefill_s=1.0), cost("c2", prefill_s=2.0)])
        store.add_costs([cost("c1", prefill_s=9.0)])
        assert store.costs(["c1"])["c1"].prefill_s == 1.0, "the first is kept"
        store.replace_costs([cost("c1", prefill_s=3.0, contention=0.25), cost("c3")])
        found = store.costs(["c1", "c2", "c3"])
        assert [found[key].prefill_s for key in ("c1", "c2", "c3")] == [3.0, 2.0, 1e-3]
        assert found["c1"].contention == 0.25
        left = {one.id: sorted(one.parent_costs) for one in store.searches()}
        assert left == {"a": ["whole"], "b": ["fixed", "whole"]}, "b has nothing to do with c1"
        with pytest.raises(RowError):
            store.replace_costs([cost("c2", prefill_s=5.0), cost("c4", prefill_s=float("nan"))])
        assert store.costs(["c2"])["c2"].prefill_s == 2.0
