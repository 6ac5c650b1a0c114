"""A class name has one meaning across rooms; a leading underscore tells no two things apart."""

import ast
from collections import defaultdict

from test_rooms import FILES, name


def test_no_class_name_stands_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(name(path))
    assert {each: where for each, where in places.items() if len(where) > 1} == {}
