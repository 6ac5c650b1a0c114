"""The job file: YAML in, a frozen `Request` out, every mistake named with the place it is at.

Knows YAML and how to say what is wrong. Does not know what may be asked: `nas/request.py` does.
"""

import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nas.request import Request

__all__ = ["JobError", "Request", "load", "parse", "template"]


class JobError(ValueError):
    """A job file is wrong. Each line is one mistake: the file, the key's full path, what was given, what would fit."""


def load(path: str | Path) -> Request:
    """The request in a job file. Raises JobError where it cannot be read, or is wrong."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise JobError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8 at byte {error.start}") from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Request:
    """The request that `text` is. Raises JobError.

    `where` is the file it came from: messages and the default name call it so, and relative paths start at its folder.
    """
    try:
        job = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise JobError(f"{where}{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise JobError(f"{where}: {error}") from error
    if not isinstance(job, dict):
        raise JobError(
            f"{where}: a job is keys and values, starting with parent, data and budget; `nas init` prints one"
        )
    if job.get("name") is None:
        job["name"] = Path(where).stem
    try:
        return Request.model_validate(job, context={"folder": Path(where).parent})
    except ValidationError as errors:
        raise JobError("\n".join(f"{where}: {_describe(error)}" for error in errors.errors())) from errors


def restored(values: dict[str, Any], where: str) -> Request:
    """The request a search was run with, as the database keeps it. Raises JobError: what it names may be gone."""
    try:
        return Request.model_validate(values)
    except ValidationError as errors:
        raise JobError("\n".join(f"{where}: {_describe(error)}" for error in errors.errors())) from errors


def template() -> str:
    """A commented job that runs as it stands: the embedded parent, the standard library's text, small sizes."""
    return resources.files("nas").joinpath("templates/job.yaml").read_text(encoding="utf-8")


def _describe(error: ErrorDetails) -> str:
    """One mistake in a line. Names in <> are pydantic's for the forms of a text source, and no part of the key."""
    context = error.get("ctx", {})
    place = [part for part in error["loc"] if not str(part).startswith("<")]
    if "key" in context:
        place.append(context["key"])
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if error["type"] == "missing":
        return f"{path}: is missing"
    if error["type"] == "wrong":
        return f"{path}: {error['msg']}"
    if error["type"] == "value_error":
        return f"{path}: {context['error']}"
    return f"{path}: {error['msg'].replace('Input should', 'should').replace('tuple', 'list')}, not {error['input']!r}"


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is a mistake, and 1e-4 a number: YAML 1.1 asks for 1.0e-4 and makes it text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, key in enumerate(keys):
            if any(key.value == earlier.value for earlier in keys[:index]):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
