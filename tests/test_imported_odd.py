"""Tables of another tool's shape, and tables that are absurd: read with the right answer, or refused before they take
memory."""

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from searches import Here
from test_imported import Mistake, written

from nas.errors import TableError
from nas.tables.read import parse

CASE = Path(__file__).parents[1] / "../shared/cases/table_replacement_list/table.json"


def replacement(layers: list[Any], kl: float, memory: float) -> dict[str, Any]:
    return {
        "block_config": {"attention": {"no_op": False}},
        "parent_layer_indices": layers,
        "metrics": {"kl_div": kl},
        "stats": {"memory_mib": memory, "runtime_ms": None},
        "is_teacher": kl == 0,
    }


def replacements() -> dict[str, Any]:
    """A table of layers 4 to 6; by hand, within 700: "full" at 4 and "fused" at 5..6, 0.25 and 660."""
    found = {}
    for layer in (4, 5, 6):
        for name, kl, memory in (("full", 0.0, 400), ("half", 0.1 * (layer - 3), 250), ("none", 0.9, 10)):
            found[f"{name}_{layer}"] = replacement([layer], kl, memory)
    return found | {"fused": replacement([6, 5], 0.25, 260)}


def test_replacements_cover_layers_that_follow_each_other(here: Here, tmp_path: Path) -> None:
    line = ("--objective", "metrics.kl_div", "--budget", "stats.memory_mib=700", "--json")
    done = here(tmp_path / "home", "solve", "--table", written(tmp_path, replacements()), *line)
    told = json.loads(done.stdout)
    assert [choice["option"] for choice in told["choices"]] == ["full_4", "fused"]
    assert [(choice["layer"], choice["span"]) for choice in told["choices"]] == [("4", 1), ("5", 2)]
    assert (told["total"], told["costs"], told["status"]) == (0.25, {"stats.memory_mib": 660}, "optimal")


@pytest.mark.skipif(not CASE.is_file(), reason="no shared cases beside this house")
def test_another_tools_replacements_are_read(here: Here, tmp_path: Path) -> None:
    line = (
        "solve",
        "--table",
        CASE,
        "--objective",
        "metrics.kl_div_loss",
        "--budget",
        "stats.memory_mib=700",
        "--json",
    )
    told = json.loads(here(tmp_path / "home", *line).stdout)
    names = {key: found["block_repr"] for key, found in json.loads(CASE.read_text()).items()}
    assert [names[choice["option"]] for choice in told["choices"]] == ["full", "fused"]
    assert (told["total"], told["costs"]["stats.memory_mib"]) == (0.25, 660)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([4, 6], r"parent_layer_indices names 4 and 6 and no layer between; a replacement stands for"),
        ([5, 5], r"parent_layer_indices names layer 5 twice"),
        ([], r"parent_layer_indices is empty; name the layers"),
        ([True], r"parent_layer_indices\[0\] is a whole number from 0 on, not true"),
        (["5"], r'parent_layer_indices\[0\] is a whole number from 0 on, not "5"'),
        ([-1], r"parent_layer_indices\[0\] is a whole number from 0 on, not -1"),
        ([10**26], r"parent_layer_indices\[0\] is 1000.*, more than the 10000 that any model has"),
        (5, r"parent_layer_indices is 5; it is a list of layers, like \[3, 4\]"),
        (None, r"parent_layer_indices is missing or null; it is a list"),
    ],
)  # fmt: skip
def test_a_replacement_of_no_run_of_layers_is_refused_by_name(
    mistake: Mistake, tmp_path: Path, layers: Any, said: str
) -> None:
    path = written(tmp_path, replacements() | {"odd": replacement(layers, 0.1, 1)})
    error = mistake(["solve", "--table", path, "--objective", "metrics.kl_div"])
    assert re.search(rf'error: {path}: replacement "odd": {said}', error), error


def test_a_replacement_given_twice_is_refused(mistake: Mistake, tmp_path: Path) -> None:
    one = json.dumps(replacement([0], 0.0, 1))
    path = written(tmp_path, f'{{"a": {one}, "b": {one}, "b": {one}}}')
    assert 'replacement "b" is given twice' in mistake(["solve", "--table", path, "--objective", "metrics.kl_div"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"slots": 1000000000, "options": [OPTION]}', r"slots is 1000000000, more than the 10000 that any model has"),
        ('{"slots": 100000000000000000000000000, "options": []}', r"slots is 1000.*, more than the 10000"),
        ('{"slots": -5, "options": []}', r"slots is a whole number from 1 on, not -5"),
        ('{"slots": true, "options": []}', r"slots is a whole number from 1 on, not true"),
        ('{"slots": "4", "options": []}', r'slots is a whole number from 1 on, not "4"'),
        ('{"slots": 1e3, "options": []}', r"slots is a whole number from 1 on, not 1000\.0"),
        ('{"slots": 10000, "options": [OPTION]}', r"no option covers slots 1, 2, 3, .* and 9990 more"),
        ('{"slots": 2, "options": [{"name": "a", "first": 0, "span": 1e26, "score": 0}]}', r"span is a whole number"),
        ('{"slots": 2, "options": [{"name": "a", "first": 0, "span": 1000000000, "score": 0}]}', r"span is 10000"),
        ('{"slots": 2, "options": [{"name": "a", "first": 1000000000, "score": 0}]}', r"first is 10000"),
        ('{"slots": 1, "options": [{"name": "a", "first": 0, "costs": {"t": "0.2"}}]}', r't is "0\.2", not a number'),
        ('{"slots": 1, "options": [{"name": "a", "first": 0, "costs": {"t": true}}]}', r"t is true, not a number"),
        ('{"slots": 1, "options": [OPTION], "budget": {"t": false}}', r"budget: t is false, not a number"),
        ('{"slots": 1, "options": [{"name": "' + 9999 * "x" + '"}]}', r"first is a whole number"),
        ('{"slots": "' + 9999 * "x" + '"}', r'not "x{40,60}\.\.\.$'),
    ],
)  # fmt: skip
def test_an_absurd_table_is_refused_before_it_takes_memory(
    mistake: Mistake, tmp_path: Path, text: str, said: str
) -> None:
    option = '{"name": "a", "first": 0, "score": 0, "costs": {"t": 1}}'
    path = written(tmp_path, text.replace("OPTION", option))
    tracemalloc.start()
    try:
        error = mistake(["solve", "--table", path])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert re.search(said, error), error
    assert peak < 50e6


def test_a_file_too_large_to_be_a_table_is_not_read_to_its_end(mistake: Mistake, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with path.open("wb") as file:
        file.truncate(10_000_000_000)  # Sparse: it takes no room.
    assert "table.json: it is larger than 100 MB; no table of options is" in mistake(["solve", "--table", path])


def test_objects_without_end_are_not_read_to_their_end() -> None:
    with pytest.raises(TableError, match=r"^t\.json: it holds more than 1000000 objects"):
        parse('{"0": [' + ",".join(1_000_001 * ["{}"]) + "]}", "t.json")


def test_json_five_thousand_deep_is_refused_by_the_command(mistake: Mistake, tmp_path: Path) -> None:
    path = written(tmp_path, '{"0": {"a": ' + 5000 * '{"x": ' + "1" + 5000 * "}" + "}}")
    assert "it is nested too deep to be a table" in mistake(["solve", "--table", path, "--objective", "x"])
