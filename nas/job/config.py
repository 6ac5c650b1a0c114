"""The job file: YAML in, a frozen `Request` out, every mistake named with the place it is at.

Knows YAML and how to say what is wrong. Does not know what may be asked: `nas/job/request.py` does.
"""

import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nas.errors import JobError
from nas.job.request import Request

_DEEPEST, _MOST_VALUES = 50, 100_000
"""Limits on the nesting and the number of a job file's values."""

_SHOWN = 200
"""Characters of a value that a message shows."""

__all__ = ["Request", "load", "parse", "template"]


def load(path: str | Path, reads_text: bool = True, parent: str | None = None) -> Request:
    """The request in a job file. `reads_text`: its text is there; else none is looked for, since nobody will read it.
    `parent`: another one than the job's.

    Raises JobError where the file cannot be read, or is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise JobError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8 at byte {error.start}") from error
    return parse(text, str(path), reads_text, parent)


def parse(text: str, where: str, reads_text: bool = True, parent: str | None = None) -> Request:
    """The request that `text` is. Raises JobError. `reads_text` and `parent` are as in `load`.

    `where` is the file it came from: messages and the default name call it so, and relative paths start at its folder.
    """
    try:
        job = yaml.load(text, _Loader)
        _check_size(job, where)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise JobError(f"{where}{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise JobError(f"{where}: {' '.join(str(error).split())}") from error
    if not isinstance(job, dict):
        raise JobError(
            f"{where}: a job is keys and values, starting with parent, data and budget; `nas init` prints one"
        )
    if not reads_text:
        sizes = job["data"] if isinstance(job.get("data"), dict) else {}
        job["data"] = {**sizes, "train": "stdlib", "evaluation": None}
    if parent is not None:
        job["parent"] = parent
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


def served_by(request: Request, engine: str | None, dtype: str | None) -> Request:
    """The same request with another engine, or another type of weights; None: its own.

    Another engine has its usual types if none is given. Raises JobError where the engine has no such type.
    """
    stays = engine in (None, request.engine)
    served = {"engine": engine or request.engine, "dtype": dtype or (request.scenario.dtype if stays else None)}
    served |= {} if stays else {"kv_cache": None}
    values = request.canonical()
    space = values["space"] | ({} if stays else {"kv_cache": []})
    return restored(values | {"scenario": values["scenario"] | served, "space": space}, request.name)


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
    should = error["msg"].replace("Input should", "should").replace("tuple", "list")
    return f"{path}: {should}, not {_cut(repr(error['input']))}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def _check_size(job: Any, where: str) -> None:
    """Refuse a job whose aliases repeat each other: a few lines may stand for billions of values, too many to check."""
    if _values(job, {}) > _MOST_VALUES:
        raise JobError(
            f"{where}: its aliases (*name) stand for more than {_MOST_VALUES:,} values; write out the values"
        )


def _values(value: Any, counted: dict[int, float]) -> float:
    """The number of values, each counted as often as it is named; infinite if a value holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counted:
        counted[id(value)] = math.inf  # until it is counted: then it holds itself
        inner = value.values() if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_values(each, counted) for each in inner)
    return counted[id(value)]


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is a mistake, and 1e-4 a number: YAML 1.1 asks for 1.0e-4 and makes it text.
    Nesting that is too deep is refused, before Python's own limit is met."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self._depth > _DEEPEST:
            mark = self.get_mark()
            raise yaml.composer.ComposerError(None, None, f"nested more than {_DEEPEST} deep; no job is", mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        # A number of thousands of digits, a thirteenth month.
        except (ValueError, LookupError, AttributeError) as error:
            fault = f"{_cut(str(node.value))} is not a valid {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, fault, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, key in enumerate(keys):
            if any(key.value == earlier.value for earlier in keys[:index]):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
