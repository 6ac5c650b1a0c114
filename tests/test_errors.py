"""How things go wrong: every error has a class in one tree, a mistake is told in one line, and a bug shows itself."""

import ast
import builtins
import importlib
import inspect
import json
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from searches import Here, command, environment, job, the_error

from blocklib.block import Choice, Subblock
from blocklib.errors import (
    CheckpointError,
    MissingCheckpointError,
    MissingSubblockError,
    SpellingError,
    SubblockError,
    UnsupportedModelError,
    WeightsFileError,
)
from blocklib.library import Library
from cost_models.errors import NoMeterError, QuantityError, ScenarioError
from cost_models.flash.flash import MemoryHierarchy
from cost_models.scenario import Scenario
from db.errors import DatabaseError, DatabaseTooNewError, ForeignDatabaseError, NotFoundError, QueryError
from db.store import Store
from nas.cluster.ray_folder import ray_folder
from nas.errors import (
    AddressError,
    BudgetError,
    JobError,
    MissingFileError,
    NasError,
    NoClusterError,
    OutputExistsError,
    PathError,
    SocketPathError,
    TableError,
    TextError,
    UnsupportedExportError,
    UsageError,
)
from nas.stages.child_file import load_child
from solvers.errors import Infeasible, MemoryLimitError, ProblemError, SolverTimeoutError
from solvers.problem import Problem

HOUSE = Path(__file__).parents[1]
ROOMS = ("nas", "blocklib", "cost_models", "solvers", "db")
SIGNALS = {("solvers/exact/meet_in_the_middle.py", "MergedError"), ("solvers/exact/memory.py", "CrowdedError")}
"""They tell one part of the exact search that another gave up. One that leaves the room is a bug."""


# --- the tree -------------------------------------------------------------------------------------------------------


def _classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for room in ROOMS:
        for path in sorted((HOUSE / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    yield path.relative_to(HOUSE).as_posix(), node


def _exceptions() -> set[tuple[str, str]]:
    """File and name of every class that is one, by the names of its bases."""
    known = {name for name, value in vars(builtins).items() if inspect.isclass(value) and issubclass(value, Exception)}
    found: set[tuple[str, str]] = set()
    while True:
        more = {
            (file, node.name)
            for file, node in _classes()
            if known & {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        }
        if more == found:
            return found
        found, known = more, known | {name for _, name in more}


def _tree() -> list[type[Exception]]:
    """Every class of the five files."""
    return [
        value
        for room in ROOMS
        for value in vars(importlib.import_module(f"{room}.errors")).values()
        if inspect.isclass(value) and value.__module__ == f"{room}.errors"
    ]


def test_every_exception_is_in_the_file_of_its_room() -> None:
    there = {(f"{kind.__module__.replace('.', '/')}.py", kind.__name__) for kind in _tree()}
    assert _exceptions() - SIGNALS == there


def test_every_error_has_the_root_and_its_rooms_base() -> None:
    assert all(issubclass(kind, NasError) for kind in _tree())
    for room in ROOMS:
        (base, *others) = [kind for kind in _tree() if kind.__module__ == f"{room}.errors"]
        assert all(issubclass(kind, base) for kind in others), room


@pytest.mark.parametrize("kind", _tree(), ids=lambda kind: kind.__name__)
def test_an_error_says_what_it_is(kind: type[Exception]) -> None:
    assert kind.__doc__
    assert kind.__name__.endswith("Error") or kind is Infeasible
    is_base = kind.__bases__ in {(Exception,), (NasError,)}
    assert is_base or issubclass(kind, ValueError | LookupError | OSError | RuntimeError)


def test_no_name_has_two_meanings() -> None:
    names = [kind.__name__ for kind in _tree()]
    assert sorted(names) == sorted(set(names))
    assert not [name for name in names if hasattr(builtins, name)]


@pytest.mark.parametrize("kind", _tree(), ids=lambda kind: kind.__name__)
def test_an_error_comes_back_from_a_worker_as_what_it_is(kind: type[Exception]) -> None:
    error = kind("config.json", "is cut", "copy it again") if kind is CheckpointError else kind("what happened")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))


# --- bugs -----------------------------------------------------------------------------------------------------------


def _planted(folder: Path, right: str, wrong: str) -> dict[str, str]:
    """An environment whose `solvers` is a copy with one expression of problem.py written wrongly."""
    copied = shutil.copytree(HOUSE / "solvers", folder / "planted/solvers")
    source = (copied / "problem.py").read_text(encoding="utf-8")
    assert source.count(right) == 1
    (copied / "problem.py").write_text(source.replace(right, wrong), encoding="utf-8")
    return environment(folder / "home") | {"PYTHONPATH": os.pathsep.join([str(copied.parent), str(HOUSE)])}


@pytest.mark.parametrize("before", [[], ["--debug"]], ids=["", "debug"])
def test_a_broken_invariant_keeps_its_traceback(tmp_path: Path, before: list[str]) -> None:
    """The solver checks its own answer; with a wrong sum in it, that check fails."""
    known = _planted(tmp_path, "score = math.fsum(option.score for option in chosen)", "score = 1.0")
    asked = command(*before, "solve", "--table", _table(tmp_path), "--objective", "metrics.kl_div")
    done = subprocess.run(asked, env=known, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "Traceback (most recent call last)" in done.stderr
    assert "\nValueError: the solution says its score is 1.0" in done.stderr
    assert "\nerror: " not in done.stderr
    assert "this is a bug in puzzle-nas" in done.stderr.splitlines()[-1]
    assert "issue tracker" in done.stderr.splitlines()[-1]


def test_what_a_library_refuses_is_no_users_mistake() -> None:
    script = "import numpy\nfrom nas.terminal.exits import clear_errors\n"
    script += "with clear_errors(): numpy.zeros(2) @ numpy.zeros(3)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "this is a bug" in done.stderr.splitlines()[-1]


# --- mistakes -------------------------------------------------------------------------------------------------------


def _table(folder: Path) -> Path:
    path = folder / "table.json"
    option = {"stats": {"memory_mib": 8.0}, "metrics": {"kl_div": 0.5}}
    path.write_text(json.dumps({"layer_0": {"a": option, "b": {"stats": {"memory_mib": 4}, "metrics": {"kl_div": 2}}}}))
    return path


def _files(folder: Path) -> dict[str, Path]:
    """The subjects of the mistakes below, by the names that stand for them there."""
    home = folder / "home"
    home.mkdir()
    Store.open(home / "nas.db").close()
    theirs, later = home / "theirs.db", home / "later.db"
    with sqlite3.connect(theirs) as connection:
        connection.execute("CREATE TABLE trial (theirs TEXT)")
    connection.close()
    shutil.copy(home / "nas.db", later)
    with sqlite3.connect(later) as connection:
        connection.execute("UPDATE puzzle_nas_version SET version_num = '9999'")
    connection.close()
    found = {"TABLE": _table(folder), "THEIRS": theirs, "LATER": later}
    for name, text in {"NOTE": "Dear diary", "BROKEN": "{", "EMPTY": " \n", "YAML": "parent: ["}.items():
        found[name] = folder / f"{name.lower()}.txt"
        found[name].write_text(text)
    for name, config in {"NO_MODEL": None, "CUT": "{", "MAMBA": '{"model_type": "mamba"}'}.items():
        found[name] = folder / name.lower()
        found[name].mkdir()
        if config is not None:
            (found[name] / "config.json").write_text(config)
    for name, changed in _JOBS.items():
        (folder / name).mkdir()
        found[name] = job(folder / name, **changed)
    taken = folder / "TAKEN"
    taken.joinpath("thesis.tex").write_text("years of work")
    found["TAKEN"].write_text(found["TAKEN"].read_text() + yaml.safe_dump({"export": {"out": str(taken)}}))
    return found


_FLASH = {"dram": "2 GB", "dram_speed": "60 GB/s", "flash_speed": "1 GB/s"}
_JOBS: dict[str, dict[str, Any]] = {
    "MISSPELT": {"budgte": {"latency": "60%"}},
    "TOO_WIDE": {"space": {"ffn": ["ffn100000"]}},
    "NO_NUMBER": {"space": {"ffn": ["dip"]}},
    "BROKEN_SHARE": {"space": {"attention": ["kv30%"]}},
    "NO_PLACE": {"space": {"ffn": ["linear"], "attention": ["linear"]}, "export": {"format": "decilm"}},
    "TAKEN": {},
    "NO_METER": {"budget": {"energy": "70%"}, "scenario": {"batch": 1, "flash": _FLASH}},
}
_ASKED = ["--objective", "metrics.kl_div"]
MISTAKES: list[tuple[list[str], type[NasError]]] = [
    (["trials", "--yes"], UsageError),
    (["trials", "--delete"], UsageError),
    (["trials", "--ids", "3x"], UsageError),
    (["trials", "--ids", "3"], NotFoundError),
    (["solve"], UsageError),
    (["solve", "stories"], UsageError),
    (["solve", "stories", "--table", "TABLE"], UsageError),
    (["solve", "--table", "TABLE", "--metric", "kl"], UsageError),
    (["pool", "stories", "--count", "2000"], UsageError),
    (["pareto", "stories", "--plot", "front.pdf"], UsageError),
    (["trials", "--db", "nowhere.db"], DatabaseError),
    (["trials", "--db", "mysql://host/name"], DatabaseError),
    (["trials", "--db", "NOTE"], DatabaseError),
    (["trials", "--db", "THEIRS"], ForeignDatabaseError),
    (["trials", "--db", "LATER"], DatabaseTooNewError),
    (["solve", "stories", "--budget", "latency=50%"], NotFoundError),
    (["show", "77"], NotFoundError),
    (["trials", "--where", "kl <"], QueryError),
    (["trials", "--sort", "kll"], QueryError),
    (["solve", "stories", "--budget", "latncy=50%"], BudgetError),
    (["solve", "stories", "--budget", "latency=150%"], BudgetError),
    (["solve", "stories", "--budget", "latency"], BudgetError),
    (["solve", "stories", "--budget", "latency=50"], QuantityError),
    (["solve", "stories", "--budget", "memory=5 ms"], QuantityError),
    (["solve", "stories", "--budget", "energy=5 kW"], QuantityError),
    (["solve", "--table", "nowhere.json", *_ASKED], TableError),
    (["solve", "--table", "BROKEN", *_ASKED], TableError),
    (["solve", "--table", "TABLE", "--objective", "metrics.kl"], TableError),
    (["solve", "--table", "TABLE", *_ASKED, "--budget", "stats.memory_mib=lots"], TableError),
    (["solve", "--table", "TABLE", *_ASKED, "--budget", "stats.memory_mib=3"], Infeasible),
    (["solve", "--table", "TABLE", *_ASKED, "--memory", "2"], QuantityError),
    (["solve", "--table", "TABLE", *_ASKED, "--memory", "1MB"], MemoryLimitError),
    (["search", "nowhere.yaml"], JobError),
    (["search", "YAML"], JobError),
    (["search", "NOTE"], JobError),
    (["search", "MISSPELT"], JobError),
    (["search", "TOO_WIDE"], SubblockError),
    (["search", "NO_NUMBER"], SpellingError),
    (["search", "BROKEN_SHARE"], JobError),
    (["search", "NO_PLACE"], UnsupportedExportError),
    (["search", "TAKEN"], OutputExistsError),
    (["search", "NO_METER"], NoMeterError),
    (["dependency", "./nowhere"], PathError),
    (["dependency", "embedded", "--data", "nowhere.txt"], PathError),
    (["dependency", "embedded", "--data", "EMPTY"], TextError),
    (["dependency", "NO_MODEL"], MissingCheckpointError),
    (["dependency", "CUT"], CheckpointError),
    (["dependency", "MAMBA"], UnsupportedModelError),
    (["status", "job", "--address", "ray://127.0.0.1:1"], AddressError),
    (["status", "job", "--address", "http://127.0.0.1:1"], NoClusterError),
]


@pytest.mark.parametrize(("arguments", "kind"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_mistake_is_told_in_a_line_of_its_own_class(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], kind: type[NasError]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = _files(tmp_path)
    line = [files.get(argument, argument) for argument in arguments]
    done = here(tmp_path / "home", *line)
    assert done.returncode == (2 if kind is UsageError else 1)
    error = the_error(done.stderr)
    assert len(error.splitlines()) == 1 or kind is QueryError, "a query is shown with what is wrong in it"
    shown = here(tmp_path / "home", "--debug", *line)
    assert shown.returncode == done.returncode
    trace, _, last = shown.stderr.rpartition("\nerror: ")
    assert f"error: {last.strip()}" == error
    assert "Traceback (most recent call last)" in trace
    assert f"\n{kind.__module__}.{kind.__qualname__}: " in trace


def _damaged(folder: Path) -> None:
    library, choice = Library(folder), Choice(0, "ffn", Subblock("ffn", "8"))
    library.path(choice, "key").write_bytes(b"cut")
    library.load(choice, "key")


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda folder: Scenario("tpu", "float32", 1, 1, 1), ScenarioError),
        (lambda folder: MemoryHierarchy(1e9, 1e9, 1e9, gamma=0.5, policy="belady"), ScenarioError),
        (lambda folder: Problem(0, (), {}), ProblemError),
        (lambda folder: Library(folder).load(Choice(0, "ffn", Subblock("ffn", "8")), "key"), MissingSubblockError),
        (_damaged, WeightsFileError),
        (lambda folder: load_child(folder / "child.safetensors"), MissingFileError),
        (lambda folder: ray_folder(), SocketPathError),
    ],
)
def test_a_mistake_has_its_class_deep_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], object], kind: type[NasError]
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + 200 * "x")
    with pytest.raises(NasError) as raised:
        act(tmp_path)
    assert raised.type is kind


@pytest.mark.parametrize(
    ("kind", "caught"),
    [
        (JobError, ValueError),
        (Infeasible, ValueError),
        (MissingCheckpointError, FileNotFoundError),
        (OutputExistsError, FileExistsError),
        (NoClusterError, ConnectionError),
        (SolverTimeoutError, TimeoutError),
    ],
)
def test_callers_may_catch_what_python_has(kind: type[NasError], caught: type[Exception]) -> None:
    with pytest.raises(caught):
        raise kind("what happened")
