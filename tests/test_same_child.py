"""Trials that are one child: what they share, and what is left of it when one of them is deleted."""

from collections.abc import Iterator

import pytest
from rows import cost, score, search, trial

from db.models import OptionRow
from db.store import Store

pytest_plugins = ["databases"]


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


def test_children_that_differ_in_healing_alone_share_what_healing_does_not_change(store: Store) -> None:
    store.add_search(search())
    store.add_search(search("other"))
    one, healed, elsewhere = (
        store.add_trial(trial(key, child_key=key, search_id=of))
        for key, of in (("t1", "5ea5c4"), ("t2", "5ea5c4"), ("t3", "other"))
    )
    store.update_trial(healed.id, latency_s=0.5, decode_s=0.01, kl_before_heal=0.5, kl=0.25, heal_tokens=2048)
    store.add_trial(trial("t4", child_key="t4", kl_whole=0.625))
    store.add_trial(trial("t5", architecture="kv8+skip", child_key="t5", kl_whole=0.75))
    found = store.trial(one.id)
    assert (found.latency_s, found.decode_s, found.kl_whole) == (0.5, 0.01, 0.625)
    assert (found.kl_before_heal, found.kl, found.heal_tokens) == (None, None, None), "rounding before it may differ"
    assert store.trial(elsewhere.id).latency_s is None, "another search has other weights, or another machine"
    assert [each.id for each in store.trials(where="kl_whole < 0.7")] == [1, 2, 4]


def test_the_child_that_was_built_of_an_architecture_is_known(store: Store) -> None:
    store.add_search(search())
    for key in ("c1", "c2", "c3"):
        store.add_trial(trial(key, child_key=key, kl=None if key == "c3" else 0.5))
    assert store.built_child("5ea5c4", "kv8+ffn256") == "c2"
    assert store.built_child("5ea5c4", "kv8+skip") is None
    assert store.built_child("other", "kv8+ffn256") is None


def test_deleted_trials_leave_what_others_share(store: Store) -> None:
    store.add_search(search())
    store.add_scores([score()])
    store.add_costs([cost()])
    choice = dict(choice="L3.ffn=ffn256", first_slot=7, span=1, name="ffn256", score_key="s1", cost_keys=["c1"])
    store.set_options("5ea5c4", [OptionRow(search_id="5ea5c4", **choice)])
    one, twin, alone = (store.add_trial(trial(key, child_key=key[0])) for key in ("a1", "a2", "b"))
    store.update_trial(one.id, kl=0.25, latency_s=0.5, details={"parent": {"lm_loss": 2.0}})
    with pytest.raises(ValueError, match="no trial has the id 99"):
        store.delete_trials([one.id, 99])
    assert len(store.trials()) == 3, "all or none"
    assert store.delete_trials([one.id, one.id, alone.id]) == ["b"]
    (left,) = store.trials()
    assert (left.id, left.kl, left.latency_s, left.details) == (twin.id, 0.25, 0.5, {"parent": {"lm_loss": 2.0}})
    (known,) = store.options("5ea5c4")
    assert (known.score, known.costs) == (store.scores(["s1"])["s1"], (store.costs(["c1"])["c1"],))
    assert store.delete_trials([twin.id]) == ["a"]
    assert store.delete_trials([]) == []
