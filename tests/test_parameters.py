"""A function takes at most six parameters: more of them travel together, and are a value.

The one exception are the commands. Typer reads the options of a command from its signature and cannot group them, so a
command with more only makes one frozen request of them, and hands that to one function.
"""

import ast
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module

from test_rooms import FILES, functions, name

from nas.cli.main import app

MOST = 6
COMMANDS = {command.callback.__qualname__: command.callback for command in app.registered_commands if command.callback}
"""By the names of their functions."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parameters(function: Function) -> list[str]:
    """Those with a name, `self` and `cls` left out."""
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [each.arg for each in given if each.arg not in ("self", "cls")]


def long_signatures() -> Iterator[tuple[str, Function]]:
    for path in FILES:
        module = name(path).removesuffix(".py").replace("/", ".")
        for function in functions(path):
            if len(parameters(function)) > MOST:
                yield module, function


def is_command(module: str, function: Function) -> bool:
    command = COMMANDS.get(function.name)
    return command is not None and command.__module__ == module


def test_no_function_but_a_command_takes_more_than_six_parameters() -> None:
    long = {
        f"{module}.{one.name}": len(parameters(one)) for module, one in long_signatures() if not is_command(module, one)
    }
    assert long == {}


def test_a_command_of_many_options_makes_one_frozen_request_and_calls_one_function() -> None:
    commands = [(module, one) for module, one in long_signatures() if is_command(module, one)]
    assert {one.name for _, one in commands} >= {"solve", "pool", "trials"}
    for module, command in commands:
        assert ast.get_docstring(command)
        (statement,) = command.body[1:]
        assert isinstance(statement, ast.Expr), command.name
        assert isinstance(statement.value, ast.Call), command.name
        (request,) = statement.value.args
        assert isinstance(request, ast.Call), command.name
        assert isinstance(request.func, ast.Name), command.name
        made = getattr(import_module(module), request.func.id)
        assert is_dataclass(made), command.name
        assert made.__dataclass_params__.frozen, command.name
