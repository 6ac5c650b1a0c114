"""Migrations: they build the models, and a database of an earlier revision keeps what it has."""

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from rows import cost, search, trial, tune_trial
from sqlalchemy import create_engine, inspect, text

import db.migrate
from db.migrate import HEAD, VERSION_TABLE
from db.models import Base, OptionRow
from db.store import Store

pytest_plugins = ["databases"]


def test_migrations_build_exactly_the_models(url: str) -> None:
    Store.open(url).close()
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        assert {*inspect(connection).get_table_names()} == {*Base.metadata.tables, VERSION_TABLE}
    engine.dispose()


def test_head_is_the_newest_revision() -> None:
    assert ScriptDirectory(str(Path(db.migrate.__file__).with_name("migrations"))).get_heads() == [HEAD]


_LATER = {
    "0014": {"cost": (), "trial": (), "search": ("rate_source",)},
    "0013": {"cost": (), "trial": ("heal_curve",)},
    "0012": {"cost": (), "trial": ("round_tokens",)},
    "0011": {"cost": (), "trial": [p + name for name in ("file_bytes", "bits_per_weight") for p in ("predicted_", "")]},
    "0003": {
        "cost": ("prefill_error_s", "decode_error_s", "contention"),
        "trial": (
            "predicted_latency_error_s", "predicted_ttft_error_s", "predicted_decode_error_s", "predicted_contention",
            "ttft_spread", "decode_spread", "contention",
        ),
    },
    "0004": {
        "cost": ("prefill_j", "decode_j", "prefill_error_j", "decode_error_j"),
        "trial": ("predicted_energy_j", "predicted_energy_error_j", "energy_j", "energy_ratio", "energy_spread"),
    },
}  # fmt: skip
"""Columns by the revision that added them."""


def make_old(url: str, revision: str) -> None:
    """Turn a database of today into what it was before later revisions added columns."""
    engine = create_engine(url)
    with engine.begin() as connection:
        added = [tables for later, tables in _LATER.items() if later > revision]
        for table, columns in (pair for tables in added for pair in tables.items()):
            for column in columns:
                connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        for later, table in (
            ("0014", "tune_trial"),
            ("0009", "task_group"),
            ("0008", "whole_time"),
            ("0007", "evaluation"),
        ):
            if revision < later:
                connection.execute(text(f"DROP TABLE {table}"))
        if revision < "0006":
            connection.execute(text("ALTER TABLE option ADD COLUMN cost_key TEXT"))
            connection.execute(text("ALTER TABLE option DROP COLUMN cost_keys"))
        if revision < "0005":
            connection.execute(text("ALTER TABLE stage ADD COLUMN detail JSON NOT NULL DEFAULT '{}'"))
        if revision < "0002":
            connection.execute(text("ALTER TABLE search DROP COLUMN score_text"))
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'"))
    engine.dispose()


def test_of_times_taken_before_it_was_noted_nobody_knows_how_good_they_are(url: str) -> None:
    parts = {"fixed": {"prefill_s": 1.0}, "whole": {"prefill_s": 2.0}}
    with Store.open(url) as store:
        store.add_search(search(parent_costs=parts))
        store.add_costs([cost(spread=0.02, contention=0.5), cost("c2", name="skip", prefill_s=0.0)])
        store.add_trial(trial(latency_s=1.0, latency_spread=0.1, contention=0.5))
    make_old(url, "0002")
    with Store.open(url) as store:
        (old,), (tried,), (asked,) = store.costs(["c1"]).values(), store.trials(), store.searches()
        nothing = store.costs(["c2"])["c2"]
        assert [getattr(nothing, name) for tables in _LATER.values() for name in tables["cost"]] == 7 * [0.0]
        assert (old.spread, old.prefill_error_s, old.contention) == (0.02, None, None)
        assert (tried.latency_spread, tried.contention, tried.predicted_latency_error_s) == (0.1, None, None)
        unknown = dict.fromkeys(name for tables in _LATER.values() for name in tables["cost"])
        assert asked.parent_costs == {part: kept | unknown for part, kept in parts.items()}


def test_joules_of_a_search_of_before_are_unknown_but_for_what_runs_nothing(url: str) -> None:
    with Store.open(url) as store:
        store.add_search(search(parent_costs={"whole": {"prefill_s": 2.0, "contention": 0.0}}))
        store.add_costs([cost(prefill_j=1.0), cost("c2", name="skip", prefill_s=0.0)])
        store.add_trial(trial(latency_s=1.0, energy_j=3.0))
    make_old(url, "0003")
    with Store.open(url) as store:
        rows, (tried,), (asked,) = store.costs(["c1", "c2"]), store.trials(), store.searches()
        assert (rows["c1"].prefill_s, rows["c1"].prefill_j, rows["c1"].decode_error_j) == (1e-3, None, None)
        assert (rows["c2"].prefill_j, rows["c2"].decode_j, rows["c2"].prefill_error_j) == (0, 0, 0)
        assert (tried.latency_s, tried.energy_j, tried.predicted_energy_j) == (1.0, None, None)
        unknown = dict.fromkeys(_LATER["0004"]["cost"])
        assert asked.parent_costs == {"whole": {"prefill_s": 2.0, "contention": 0.0} | unknown}


def test_a_database_of_the_first_revision_keeps_what_it_has(url: str) -> None:
    with Store.open(url) as store:
        store.add_search(search(score_text="t"))
    make_old(url, "0001")
    with Store.open(url) as store:
        (found,) = store.searches()
        assert (found.name, found.score_text) == (search().name, None)
        assert store.add_search(search(score_text="t")).score_text == "t"


def test_sums_of_costs_become_the_costs_that_they_were_of(url: str) -> None:
    """But for a sum that has a part which no option of its search is."""
    costs = {"k": "attention kv2", "f": "ffn ffn64", "kf": "attention kv2 + ffn ffn64", "none": "skip", "ff": "a + b"}
    keys = {"L0.attention=kv2": "k", "L0.ffn=ffn64": "f", "L0.block=kv2+ffn64": "kf", "L0.block=skip+skip": "none",
            "L1.block=a+b": "ff", "L1.ffn=skip": None}  # fmt: skip
    with Store.open(url) as store:
        store.add_search(search())
        store.add_costs([cost(key, name=name) for key, name in costs.items()])
        store.set_options("5ea5c4", [OptionRow(search_id="5ea5c4", choice=choice, first_slot=0, span=1, name="")
                                     for choice in keys])  # fmt: skip
    make_old(url, "0005")
    engine = create_engine(url)
    with engine.begin() as connection:
        for choice, key in keys.items():
            connection.execute(
                text("UPDATE option SET cost_key = :key WHERE choice = :choice"), {"key": key, "choice": choice}
            )
    engine.dispose()
    with Store.open(url) as store:
        found = {one.option.choice: one.option.cost_keys for one in store.options("5ea5c4")}
        assert found == {
            "L0.attention=kv2": ["k"], "L0.ffn=ffn64": ["f"], "L0.block=kv2+ffn64": ["k", "f"],
            "L0.block=skip+skip": [], "L1.block=a+b": ["ff"], "L1.ffn=skip": [""],
        }  # fmt: skip
        assert store.costs(list(costs)).keys() == {"k", "f", "ff"}


def test_a_search_of_before_tuning_does_not_say_where_its_rate_is_from(url: str) -> None:
    with Store.open(url) as store:
        store.add_search(search(rate_source="default"))
        store.add_tune_trial(tune_trial(0, 1e-3, 0.5))
    make_old(url, "0013")
    with Store.open(url) as store:
        (found,) = store.searches()
        assert (found.name, found.rate_source) == (search().name, None)
        assert store.tune_trials("d1") == []
        store.add_tune_trial(tune_trial(0, 1e-3, 0.5))
        assert [row.learning_rate for row in store.tune_trials("d1")] == [1e-3]
