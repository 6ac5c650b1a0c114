"""The house's rules that a reader relies on: who may import whom, and how long a page is."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from db.store import Store

HOUSE = Path(__file__).parents[1]
ROOMS = ("blocklib", "solvers", "db", "cost_models", "nas")
MAY_IMPORT = {
    "blocklib": {"blocklib"},
    "solvers": {"solvers"},
    "db": {"db"},
    "cost_models": {"cost_models", "blocklib"},
    "nas": set(ROOMS),
}
ROOMS_OF_NAS = (
    *(
        "errors",
        "terminal",
        "job",
        "files",
        "text",
        "cluster",
        "export",
        "scoring",
        "solve",
        "view",
        "planning",
        "stages",
    ),
    *("evaluation", "serving"),
    *("compare", "tables", "report", "pipeline", "answers", "trial_query", "submitted", "search", "api", "cli"),
    "vllm_plugin",
)
"""Each may import those before it, and no other."""
ROOT_ERROR = "nas.errors.NasError"
FILES = [path for room in ROOMS for path in sorted((HOUSE / room).rglob("*.py"))]
BESIDE = [path for folder in ("tests", "benchmarks", "examples") for path in sorted((HOUSE / folder).rglob("*.py"))]


def name(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def imported(path: Path) -> set[str]:
    """Every module a file imports, wherever in it, dotted and whole: `from a import b` is `a.b`."""
    return imported_in(ast.parse(path.read_text(encoding="utf-8")), path)


def imported_in(tree: ast.Module, path: Path) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported_at_work(path: Path) -> set[str]:
    """Those of `imported` that are not for the types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body.clear()
    return imported_in(tree, path)


def who_imports(*packages: str) -> set[str]:
    return {name(path) for path in FILES if {module.split(".")[0] for module in imported(path)} & set(packages)}


def attributes_of(module: str, path: Path) -> set[str]:
    """The attributes of a module that a file uses, as `module.name`."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == module}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_all_rooms_are_there() -> None:
    assert {name(path).split("/")[0] for path in FILES} == set(ROOMS)
    within = {path.relative_to(HOUSE / "nas").parts[0].removesuffix(".py") for path in (HOUSE / "nas").rglob("*.py")}
    assert within - {"__init__"} == set(ROOMS_OF_NAS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    """But for the root of all errors, which the errors of every room import and nothing else there does."""
    for path in (HOUSE / room).rglob("*.py"):
        modules = imported(path) - ({ROOT_ERROR} if path == HOUSE / room / "errors.py" else set())
        rooms = {module.split(".")[0] for module in modules} & set(ROOMS)
        assert rooms <= MAY_IMPORT[room], name(path)


@pytest.mark.parametrize("room", ROOMS_OF_NAS)
def test_imports_within_nas_point_one_way(room: str) -> None:
    below = ROOMS_OF_NAS[: ROOMS_OF_NAS.index(room) + 1]
    for path in [HOUSE / "nas" / f"{room}.py", *(HOUSE / "nas" / room).rglob("*.py")]:
        if path.is_file():
            used = {module.split(".")[1] for module in imported(path) if module.startswith("nas.")}
            assert used <= set(below), name(path)


@pytest.mark.parametrize("path", sorted((HOUSE / "nas/cli").glob("*.py")), ids=name)
def test_the_command_line_works_through_the_python_api(path: Path) -> None:
    """It reads no row and starts no stage by itself."""
    workrooms = {f"nas.{room}" for room in ("text", "cluster", "export", "stages", "compare", "pipeline")}
    used = imported_at_work(path)
    assert not {module for module in used if ".".join(module.split(".")[:2]) in workrooms}
    assert not {module for module in used if module.split(".")[0] == "db"}


def test_libraries_are_silenced_before_they_load() -> None:
    """A plain import stands before all `from ... import` of its block, and so before what loads the libraries."""
    assert not [name(path) for path in FILES if "from nas.terminal import quiet" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("room", ROOMS)
def test_errors_need_nothing_but_their_root(room: str) -> None:
    modules = imported(HOUSE / room / "errors.py") - {ROOT_ERROR}
    assert {module.split(".")[0] for module in modules} <= sys.stdlib_module_names


def test_ray_is_known_to_three_files() -> None:
    assert who_imports("ray") == {f"nas/cluster/{name}.py" for name in ("gang", "submission", "tasks")}


def test_requests_are_read_in_one_place() -> None:
    readers = {f"nas/job/{name}.py" for name in ("config", "data", "request", "sections", "training", "values")}
    tables = {"nas/stages/cost_table.py"}
    assert who_imports("pydantic", "pydantic_core") == readers | tables
    writers = who_imports("yaml") - {"nas/job/config.py", "nas/evaluation/tasks.py"}  # lm_eval's tasks are no requests
    assert all(attributes_of("yaml", HOUSE / file) == {"safe_dump"} for file in writers)


def test_the_vocabulary_needs_the_standard_library_and_the_errors_alone() -> None:
    files = ["blocklib/block.py", "nas/job/units.py", "nas/text/standard_library.py", "nas/job/paths.py"]
    files += [f"cost_models/{name}.py" for name in ("cost", "metrics", "quantities", "scenario")]
    files += [f"{room}/errors.py" for room in ROOMS]
    ours = {path.relative_to(HOUSE).with_suffix("").as_posix().replace("/", ".") for path in map(HOUSE.joinpath, files)}
    for file in files:
        others = {module for module in imported(HOUSE / file) if module.rpartition(".")[0] not in ours}
        assert {module.split(".")[0] for module in others} <= sys.stdlib_module_names, file


def test_a_file_is_a_page_that_says_what_it_is() -> None:
    texts = {name(path): path.read_text(encoding="utf-8") for path in [*FILES, *BESIDE]}
    assert [file for file, text in texts.items() if len(text.splitlines()) > 400] == [], "files of more than 400 lines"
    assert [file for file, text in texts.items() if text and not ast.get_docstring(ast.parse(text))] == []


def test_a_function_fits_a_screen() -> None:
    ends = {
        f"{name(path)}: {one.name}": (one.end_lineno or 0) - one.lineno for path in FILES for one in functions(path)
    }
    assert [place for place, lines in ends.items() if lines >= 60] == [], "functions of 60 lines or more"


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "common", "misc", "manager", "factory"}
    assert not [name(path) for path in FILES if {part.removesuffix(".py") for part in path.parts} & drawers]


@pytest.mark.parametrize("arguments", [["trials", "--help"], ["trials"], ["init"]], ids=" ".join)
def test_a_question_to_the_database_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    script = f"""
import json, sys
from nas.cli.main import app
try:
    app({arguments!r})
except SystemExit as end:
    print(json.dumps([end.code, sorted({{name.partition(".")[0] for name in sys.modules}})]), file=sys.stderr)
"""
    Store.open(tmp_path / "nas.db").close()
    environment = {"NAS_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(HOUSE)}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    status, modules = json.loads(ended.stderr.splitlines()[-1])
    assert status == 0, ended.stderr
    assert ended.stdout
    heavy = {"torch", "ray", "transformers", "numpy", "matplotlib", "pulp", "highspy", "optuna", "datasets"}
    assert heavy & set(modules) == set()
