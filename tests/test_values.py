"""Values have names of their own, and functions few parameters: three that travel together are a value."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HOUSE = Path(__file__).parents[1]
ROOMS = ("nas", "db")
OTHERS = ("blocklib", "cost_models", "solvers")
MOST = 6


def trees(*rooms: str) -> Iterator[tuple[str, ast.Module]]:
    for room in rooms:
        for path in sorted((HOUSE / room).rglob("*.py")):
            yield path.relative_to(HOUSE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def classes(*rooms: str) -> list[str]:
    return [node.name for _, tree in trees(*rooms) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def parameters(function: ast.FunctionDef) -> int:
    """But for `self`."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_a_class_name_means_one_thing() -> None:
    ours = classes(*ROOMS)
    assert [name for name, count in Counter(ours).items() if count > 1] == []
    assert set(ours) & set(classes(*OTHERS)) <= {"Search"}, "the public one, and the solver's own"


def test_a_function_has_few_parameters() -> None:
    """A command's are its options: nas/cli*.py."""
    many = [
        f"{path}: {node.name}"
        for path, tree in trees(*ROOMS)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and parameters(node) > MOST and not path.startswith("nas/cli")
    ]
    assert many == []
