"""Keys and numbers of a table that do not say what they seem to: refused with their place."""

import json

import pytest

from nas.errors import TableError
from nas.tables.read import parse


def test_a_number_of_thousands_of_digits_is_an_error_with_a_place() -> None:
    digits = 5000 * "1"
    with pytest.raises(TableError, match=r"^t\.json, line 2: a number has too many digits$"):
        parse('{"slots":\n ' + digits + "}", "t.json")
    with pytest.raises(TableError, match=r"^t\.json, line 3: a number has too many digits$"):
        parse(f'{{"{2 * digits}": 1.{2 * digits},\n"a \\" ": 1,\n"b": -{digits}}}', "t.json")
    with pytest.raises(TableError, match=r"^t\.json: '1{40,60}\.\.\. is not a layer"):
        parse(f'{{"{digits}": {{}}}}', "t.json")


@pytest.mark.parametrize(
    "key",
    [
        "layer_1.5",
        "layer_1e3",
        "layer_1E-3",
        "layer_-1",
        "-1",
        "+1",
        "1.5",
        ".5",
        "1e3",
        "1,5",
        "layer.-1",
        "layer_\u22121",
    ],
)
def test_a_layer_whose_number_is_not_whole_is_none(key: str) -> None:
    with pytest.raises(TableError, match=r"is not a layer: a key ends with a whole number"):
        parse(json.dumps({"layer_0": {"a": {"x": 1}}, key: {"a": {"x": 1}}}), "t.json")


@pytest.mark.parametrize("key", ["7", "layer_7", "model.layers.7", "block-7", "v2_layer_7", "layer 7", "layer_007"])
def test_a_layer_is_known_by_the_whole_number_at_its_end(key: str) -> None:
    assert parse(json.dumps({key: {"a": {"x": 1}}}), "t.json").place(0, 1) == "7"


def test_layers_that_are_missing_are_not_in_a_range() -> None:
    table = parse(json.dumps({str(layer): {"a": {"x": 1}} for layer in (1, 5, 6, 7, 9)}), "t.json")
    assert [table.place(0, end) for end in range(1, 6)] == ["1", "1 and 5", "1 and 5..6", "1 and 5..7", "1, 5..7 and 9"]
    assert table.place(1, 4) == "5..7"
