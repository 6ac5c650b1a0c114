"""Rows become typed values in one place: nobody else reads the keys of their JSON columns, nor a cost by its name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from rows import search, trial
from sqlalchemy import JSON

from cost_models.cost import Cost
from db.models import Base
from nas.job.stored import StoredRemoval, parent_costs_of, parent_totals, removal_of, request_of
from solvers.exact.memory import MEMORY_BYTES

HOUSE = Path(__file__).parents[1]
FILES = [path for room in ("nas", "db", "cost_models", "solvers", "blocklib") for path in (HOUSE / room).rglob("*.py")]
COLUMNS = {
    column.name for table in Base.metadata.tables.values() for column in table.columns if isinstance(column.type, JSON)
} | {"costs"}
READS_THEM = "db/models.py"
"""The rows' own file, whose properties are the typed values of `details`."""


def keys_read(tree: ast.AST) -> Iterator[str]:
    """Places where a text is the key of an attribute that is named like a JSON column."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Attribute(attr=name), slice=ast.Constant(value=str(key))):
                pass
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(attr=name), attr="get"), args=[ast.Constant(value=key), *_]
            ):
                pass
            case ast.Compare(
                left=ast.Constant(value=str(key)), ops=[ast.In() | ast.NotIn()], comparators=[ast.Attribute(attr=name)]
            ):
                pass
            case _:
                continue
        if name in COLUMNS:
            yield f"{name}: {key}"


@pytest.mark.parametrize(
    "code", ['search.request["score"]["metric"]', 'row.details.get("parent", {})', '"fixed" not in search.parent_costs']
)
def test_a_key_is_found(code: str) -> None:
    assert list(keys_read(ast.parse(code)))


def test_no_key_of_a_row_is_read_elsewhere() -> None:
    assert {"request", "budget", "details", "parent_costs", "usage"} <= COLUMNS
    places = {path.relative_to(HOUSE).as_posix(): list(keys_read(ast.parse(path.read_text()))) for path in FILES}
    assert {path for path, keys in places.items() if keys} == {READS_THEM}


def test_a_request_of_an_earlier_version_has_the_defaults_of_what_it_lacks() -> None:
    solver = {"gap": 0.01, "time_limit": "30.0 s", "engine": "cbc", "refine": None, "forgotten": 1}
    request = request_of(search(request={"budget": {"latency": "60%"}, "solver": solver, "home": "/h", "heal": None}))
    assert [limit.text for limit in request.budget] == ["60%"]
    assert (request.solver.gap, request.solver.time_limit, request.solver.engine) == (0.01, 30.0, "cbc")
    assert request.solver.memory == MEMORY_BYTES
    assert (request.measure.tolerance, request.metric, request.is_timed_here) == (0.01, "kl", True)
    assert (request.heals, request.ray_address, request.allows_remote_code, str(request.home)) == (
        False,
        None,
        False,
        "/h",
    )


def test_the_parents_costs_are_unknown_until_all_is_measured() -> None:
    assert parent_totals(search()) == {}
    fixed, whole = Cost(prefill_s=1.0, parameters=5), Cost(prefill_s=3.0, parameters=9)
    scenario = dict(device="cpu", dtype="float32", batch=1, prompt_tokens=8, generated_tokens=1)
    row = search(parent_costs={"fixed": vars(fixed), "whole": vars(whole)}, scenario=scenario)
    assert (parent_costs_of(row).fixed, parent_costs_of(row).whole) == (fixed, whole)
    assert parent_costs_of(row).plain() == row.parent_costs
    assert (parent_totals(row)["latency_s"], parent_totals(row)["parameters"]) == (3.0, 9)


def test_what_removal_measured_is_read_as_it_was_written() -> None:
    for removal in (StoredRemoval(), StoredRemoval((0.5, 0.25)), StoredRemoval(None, ({1: 2.0, 2: 3.0}, {2: 4.0}))):
        assert removal_of(search(removal=removal.plain() or None)) == removal


def test_a_trial_says_what_its_details_hold() -> None:
    parent = {"lm_loss": 2.0, "vocabulary": 512, "latency_s": 1.5}
    row = trial(
        details={"metric": "kl", "choices": ["L0.ffn=skip"], "solved_for": {"latency": "57%"}, "parent": parent}
    )
    assert (row.metric, row.choices, row.solved_for) == ("kl", ("L0.ffn=skip",), {"latency": "57%"})
    assert (row.parent_lm_loss, row.parent_vocabulary, row.of_parent["latency_s"]) == (2.0, 512, 1.5)
    bare = trial(details={"metric": "lm_loss"})
    assert (bare.choices, bare.solved_for, bare.explained, bare.export_format) == ((), None, None, None)
    assert (bare.parent_lm_loss, bare.parent_vocabulary, bare.of_parent) == (None, None, {})
