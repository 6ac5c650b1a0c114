"""The public surface, frozen: what scripts and people have learnt to type stays.

A change here is a change for users: say so in the changelog.
"""

import importlib
from pathlib import Path

import click
import pytest
import typer.main

from nas.cli.main import app

COMMANDS = {
    "init": [],
    "search": ["JOB", "--remeasure", "--db", "--json"],
    "solve": [
        "[SEARCH]", "--table", "--budget", "--metric", "--objective", "--maximise", "--gap", "--time-limit",
        "--memory",
        "--engine", "--refine", "--plain", "--db", "--json",
    ],
    "pareto": ["SEARCH", "--cost", "--budget", "--points", "--plot", "--db", "--json", "--memory", "--only"],
    "pool": [
        "SEARCH", "--budget", "--count", "--apart", "--time-limit", "--total-time", "--memory", "--db", "--json",
    ],
    "compare": [
        "SEARCH",
        "--budget",
        "--only",
        "--evaluations",
        "--seeds",
        "--heal/--no-heal",
        "--time",
        "--plot",
        "--db",
        "--json",
    ],
    "plan": ["JOB", "--hardware", "--parent-config", "--json"],
    "tune": ["JOB", "--trials", "--layers", "--db", "--json"],
    "precisions": ["SEARCH", "--time/--no-time", "--db", "--json"],
    "trials": [
        "[SEARCH]", "--where", "--sort", "--descending", "--limit", "--ids", "--delete", "--yes", "--db", "--json",
    ],
    "show": ["TRIAL", "--db", "--json"],
    "build": ["TRIAL", "--time/--no-time", "--db", "--json"],
    "export": ["TRIAL", "--format", "--out", "--precision", "--dtype", "--db", "--json"],
    "report": ["SEARCH", "--out", "--trial", "--db"],
    "measure": ["JOB", "--out", "--engine", "--dtype", "--json"],
    "costs export": ["SEARCH", "--out", "--db", "--json"],
    "costs check": ["SEARCH", "--children", "--seed", "--db", "--json"],
    "dependency": ["PARENT", "--data", "--tokens", "--longest", "--share", "--window", "--html", "--json"],
    "evaluate": ["TRIAL", "--tasks", "--limit", "--batch", "--apply-chat-template", "--db", "--json"],
    "bench": [
        "CHILDREN",
        "--parent",
        "--batch",
        "--prompt",
        "--generate",
        "--threads",
        "--engine",
        "--device",
        "--kv-cache",
        "--rounds",
        "--db",
        "--json",
    ],
    "serve": ["MODEL", "--host", "--port", "--engine", "--db"],
    "submit": ["JOB", "--address", "--db", "--wait/--no-wait"],
    "status": ["JOB", "--address"],
    "logs": ["JOB", "--address"],
    "stop": ["JOB", "--address"],
}  # fmt: skip
NEEDED = {("export", "--out"), ("measure", "--out"), ("costs export", "--out"), ("evaluate", "--tasks")}
EXPORTED = {
    "nas": [
        "Effort",
        "Front",
        "Search",
        "SubmittedJob",
        "Trial",
        "TrialQuery",
        "bench",
        "delete_trials",
        "dependency",
        "find_trials",
        "load",
        "measure",
        "of_trial",
        "plan",
        "run",
        "serve",
        "solve_across",
        "solve_table",
        "submit",
        "trials",
        "tune",
    ],
    "nas.report": ["write_front", "write_report"],
}
"""All other packages are empty: their files are imported by name."""


def spelled(parameter: click.Parameter) -> str:
    if parameter.param_type_name == "argument":
        word = parameter.opts[0].upper()
        return word if parameter.required else f"[{word}]"
    return "/".join([*parameter.opts, *parameter.secondary_opts])


def commands() -> dict[str, click.Command]:
    group = typer.main.get_command(app)
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {each}": one for each, one in inner.items()}
    return found


def test_commands_and_their_options() -> None:
    assert {name: [spelled(p) for p in command.params] for name, command in commands().items()} == COMMANDS


def test_options_that_must_be_given() -> None:
    options = {(name, p) for name, command in commands().items() for p in command.params}
    needed = {(name, spelled(p)) for name, p in options if p.required and p.param_type_name == "option"}
    assert needed == NEEDED


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    text = commands()[name].help or ""
    (example,) = [line.strip() for line in text.splitlines() if line.strip().startswith("Example: ")]
    assert example.startswith(f"Example: nas {name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name: str) -> None:
    for parameter in commands()[name].params:
        assert getattr(parameter, "help", None), f"{name} {spelled(parameter)}"


def test_exported_names() -> None:
    house = Path(__file__).parents[1]
    packages = {
        ".".join(path.parent.relative_to(house).parts): path
        for room in ("blocklib", "cost_models", "solvers", "db", "nas")
        for path in (house / room).rglob("__init__.py")
    }
    written = {name for name, path in packages.items() if path.read_text().strip()}
    assert {name: sorted(importlib.import_module(name).__all__) for name in written} == EXPORTED
