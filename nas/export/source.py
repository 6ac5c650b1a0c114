"""Classes of this package as one self-contained Python text. It holds each class's source, all definitions of this
package that the source names, whatever module they are in, and the imports that these need. This file knows Python's
syntax; it does not know models.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import ModuleType

_OUR_PACKAGES = frozenset({"nas", "blocklib"})
_LINE = 120


def self_contained(
    roots: Sequence[type], tables: Mapping[str, Mapping[str, type]], imported_from: Mapping[str, str]
) -> str:
    """The text that defines `roots`. Imports come first, and each definition comes after those that it names. `tables`
    are dictionaries of classes that replace the globals of the same name; `imported_from` names what is defined in
    another written file, with the module to import it from.
    """
    text = _SourceText(tables, imported_from)
    for root in roots:
        text.add(root.__name__, _module_of(root))
    return "\n\n\n".join(["\n\n".join(_import_groups(text.imports)), *text.definitions.values()]) + "\n"


class _SourceText:
    """The definitions collected so far, dependencies first, and the imports they need."""

    def __init__(self, tables: Mapping[str, Mapping[str, type]], imported_from: Mapping[str, str]):
        self.tables, self.imported_from = tables, imported_from
        self.imports: set[tuple[str, str]] = set()
        self.definitions: dict[str, str] = {}
        self._owners: dict[str, ModuleType] = {}

    def add(self, name: str, module: ModuleType) -> None:
        """Add the definition of `name` at the top level of `module`. A builtin or a local name has none there."""
        binding = _bindings(module).get(name)
        if name in self.tables:
            self._add_table(name)
        elif name in self.imported_from:
            self.imports.add((self.imported_from[name], name))
        elif isinstance(binding, ast.Import):
            self.imports.add((name, ""))
        elif isinstance(binding, ast.ImportFrom):
            assert binding.module is not None, f"{module.__name__}: a relative import of {name}"
            if binding.module.split(".")[0] in _OUR_PACKAGES:
                self.add(name, importlib.import_module(binding.module))
            else:
                self.imports.add((binding.module, name))
        elif binding is not None:
            self._define(name, module, binding)

    def _define(self, name: str, module: ModuleType, binding: ast.stmt) -> None:
        if name in self._owners:
            assert self._owners[name] is module, f"{name} is defined in {module} and in {self._owners[name]}"
            return
        self._owners[name] = module
        for used in _names_in(binding):
            self.add(used, module)
        self.definitions[name] = _source_of(binding, module)

    def _add_table(self, name: str) -> None:
        for entry in self.tables[name].values():
            self.add(entry.__name__, _module_of(entry))
        entries = ", ".join(f'"{key}": {entry.__name__}' for key, entry in self.tables[name].items())
        self.definitions[name] = f"{name} = {{{entries}}}"


def _module_of(root: type) -> ModuleType:
    return sys.modules[root.__module__]


@cache
def _bindings(module: ModuleType) -> dict[str, ast.stmt]:
    """The names `module` binds at its top level, with the statements that do."""
    return {name: statement for statement in ast.parse(inspect.getsource(module)).body for name in _bound_by(statement)}


def _bound_by(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.Import() | ast.ImportFrom():
            # A renamed import is left out, because the definition that it leads to has the other name.
            return {alias.name for alias in statement.names if alias.asname is None}
        case ast.ClassDef() | ast.FunctionDef():
            return {statement.name}
        case ast.Assign():
            return {target.id for target in statement.targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def _names_in(statement: ast.stmt) -> Iterator[str]:
    """Every bare name in the statement, in the order of its text, each once."""
    names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
    names.sort(key=lambda node: (node.lineno, node.col_offset))
    yield from dict.fromkeys(node.id for node in names)


def _source_of(statement: ast.stmt, module: ModuleType) -> str:
    """Its source lines, decorators and comments included."""
    decorators = statement.decorator_list if isinstance(statement, ast.ClassDef | ast.FunctionDef) else []
    first = min([statement.lineno, *(decorator.lineno for decorator in decorators)])
    return "\n".join(inspect.getsource(module).splitlines()[first - 1 : statement.end_lineno])


def _import_groups(imports: set[tuple[str, str]]) -> Iterator[str]:
    """The imports as text: the standard library's, other packages', the export's own files."""
    groups: dict[int, list[str]] = {}
    for module in sorted({module for module, _ in imports}):
        names = sorted(name for imported, name in imports if imported == module and name)
        group = 2 if module.startswith(".") else int(module.split(".")[0] not in sys.stdlib_module_names)
        if (module, "") in imports:
            groups.setdefault(group, []).append(f"import {module}")
        if names:
            groups.setdefault(group, []).append(_import_line(module, names))
    for group in sorted(groups):
        yield "\n".join(sorted(groups[group], key=lambda line: line.startswith("from")))


def _import_line(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= _LINE:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
