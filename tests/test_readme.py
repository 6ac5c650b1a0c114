"""The README's commands and the examples do what they say, one after the other, on a search that is finished."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from searches import Here, environment, parent_folder

import nas

HOUSE = Path(__file__).parents[1]
_ASKED = {
    "20": "3",
    "SEARCH": "tiny",
    "TRIAL": "1",
    "DIR": "child",
    "TABLE": "table.json",
    "PARENT": str(parent_folder()),
}
_ON_A_CLUSTER = {"submit", "status", "logs", "stop"}
ROOMS = ("nas", "blocklib", "cost_models", "solvers", "db")


def commands() -> list[list[str]]:
    """Every `$ nas ...` of the README, its comment and its redirection left out."""
    lines = re.findall(r"\$ nas ([^$\n]*)", (HOUSE / "README.md").read_text(encoding="utf-8"))
    found = [shlex.split(line, comments=True) for line in lines]
    return [[_ASKED.get(word, word) for word in line[: line.index(">") if ">" in line else None]] for line in found]


@pytest.mark.usefixtures("ray_here")
def test_the_commands_of_the_readme_run(here: Here, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    option = {"stats": {"memory_mib": 800}, "metrics": {"kl_div": 0.1}}
    (copy / "table.json").write_text(json.dumps({f"layer_{layer}": {"kv8": option} for layer in range(80)}))
    shutil.copy(parent_folder() / "config.json", copy)
    shown = commands()
    assert {line[0] for line in shown} >= {"init", "search", "solve", "pareto", "trials", "show", "export", "report"}
    for line in shown:
        if line[0] not in _ON_A_CLUSTER:
            done = here(copy / "home", *line)
            assert done.returncode == 0, (line, done.stderr)
            assert done.stdout
    assert (copy / "front.svg").stat().st_size > 0
    assert (copy / "child/config.json").is_file()
    assert (copy / "report.html").stat().st_size > 0


def test_the_example_solves_other_budgets(copy: Path) -> None:
    script = HOUSE / "examples/another_budget.py"
    done = subprocess.run(
        [sys.executable, str(script), str(copy / "job.yaml")],
        env=environment(copy / "home"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if ": sum of scores " in line]
    assert [line.partition(": ")[0] for line in told] == ["latency=90%", "latency=80%", "parameters=80%,memory=90%"]


@pytest.mark.parametrize("path", sorted((HOUSE / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_uses_public_names_alone(path: Path) -> None:
    """Those of examples/adding extend the package, so they import its rooms."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    ours = {module for module in modules if module.partition(".")[0] in ROOMS}
    assert ours == {"nas"}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "nas"}
    assert used <= set(nas.__all__)
