"""Someone else's JSON, read with nothing guessed: what is absurd, twice there or no number is refused with its place.

Knows JSON, how large a table of options may be, and how to say what is wrong with a value and where it stands. Does not
know what stands in a table. Standard library only.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from nas.errors import TableError
from nas.job.units import did_you_mean

MOST_BYTES = 100_000_000
_MOST_OBJECTS = 1_000_000
"""A file of either is no table: a model has hundreds of layers, a layer hundreds of options."""
_PART_BYTES = 1_000_000
_LARGEST = 1e300
"""Numbers up to here can be summed over any model's layers."""
_SHOWN = 60
"""Characters of a wrong value that are told."""
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9]+[.eE][0-9.eE+-]*|-?([0-9]+)')
"""Text, a number with a point or an exponent, or, as its group, the digits of an integer."""
_TWICE = object()
"""Stands for what a key has where one object has it twice: which of the two is meant, nobody knows."""


def read(path: Path) -> str:
    """A file's text. Raises TableError where it cannot be read, or is too large to be a table."""
    try:
        found = bytearray()
        with path.open("rb") as file:
            while part := file.read(_PART_BYTES):
                found += part
                if len(found) > MOST_BYTES:
                    raise TableError(f"{path}: it is larger than {MOST_BYTES / 1e6:g} MB; no table of options is")
        return found.decode("utf-8-sig")
    except OSError as error:
        raise TableError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: not UTF-8 at byte {error.start}") from error


def document(text: str, where: str) -> Any:
    """The value of `text`; messages call it `where`. Raises TableError."""
    try:
        return json.loads(text, object_pairs_hook=_objects(where))
    except json.JSONDecodeError as error:
        raise TableError(f"{where}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    except TableError:
        raise
    except ValueError as error:
        raise TableError(f"{where}, line {_line_of_digits(text)}: a number has too many digits") from error
    except RecursionError as error:
        raise TableError(f"{where}: it is nested too deep to be a table") from error


def leaves(value: object, place: str, path: str = "") -> dict[str, object]:
    """All that is no object and no list, by dotted path. Raises TableError where one is NaN, infinite or ambiguous."""
    if isinstance(value, dict | list):
        found: dict[str, object] = {}
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            for leaf, what in leaves(inner, place, f"{path}.{key}" if path else str(key)).items():
                if leaf in found:
                    raise TableError(f"{place}: {leaf} is given twice")
                found[leaf] = what
        return found
    if value is _TWICE:
        raise TableError(f"{place}: {path} is given twice")
    if is_number(value) and not abs(value) <= _LARGEST:  # type: ignore[arg-type]
        # JSON's words for what no JSON may hold: NaN, Infinity, -Infinity.
        told = f"beyond {_LARGEST:g}" if isinstance(value, int) or math.isfinite(value) else json.dumps(value)  # type: ignore[arg-type]
        raise TableError(f"{place}: {path} is {told}; give a finite number, or leave the option out")
    return {path: value}


def is_number(value: object) -> bool:
    """Text that spells a number is none, nor is true."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: object, place: str, path: str) -> float:
    """The number that stands at a path. Raises TableError where it is none."""
    if not is_number(value):
        raise TableError(f"{place}: {path} is {shown(value)}, not a number")
    return float(value)  # type: ignore[arg-type]


def check_keys(found: Mapping[str, object], known: Collection[str], place: str) -> None:
    """Raises TableError at a key that means nothing here."""
    for key in found:
        if key not in known:
            raise TableError(f"{place}: unknown key {shown(key, repr)}; {did_you_mean(key[:_SHOWN], known)}")


def whole(value: object, place: str, least: int, most: int) -> int:
    """A whole number between two. Raises TableError; `place` ends with its key."""
    if isinstance(value, int) and not isinstance(value, bool) and value > most:
        raise TableError(f"{place} is {shown(value)}, more than the {most} that any model has")
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise TableError(f"{place} is a whole number from {least} on, not {kind(value)}")
    return value


def taken(value: object, wanted: type, place: str, right: str) -> Any:
    """A value of the type it must have; `right` says what it is. Raises TableError."""
    if value is _TWICE:
        raise TableError(f"{place} is given twice")
    if not isinstance(value, wanted):
        raise TableError(f"{place} is {kind(value)}; it is {right}")
    return value


def kind(value: object) -> str:
    """The type of a JSON value, in words."""
    if value is _TWICE:
        return "given twice"
    if isinstance(value, dict | list):
        word = "object" if isinstance(value, dict) else "list"
        return f"an empty {word}" if not value else f"an {word}" if word == "object" else f"a {word}"
    return "missing or null" if value is None else shown(value)


def shown(value: object, spelled: Callable[[object], str] = json.dumps) -> str:
    """A value as JSON has it, its beginning where it is long."""
    text = spelled(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _line_of_digits(text: str) -> int:
    """The line of the integer with the most digits, text in quotes left out. Python reads none of thousands."""
    numbers = (token for token in _TOKEN.finditer(text) if token[1])
    longest = max(numbers, key=lambda token: len(token[1]))
    return text.count("\n", 0, longest.start()) + 1


def _objects(where: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Makes objects of what stands in them, and counts them."""
    count = 0

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count > _MOST_OBJECTS:
            raise TableError(f"{where}: it holds more than {_MOST_OBJECTS} objects; no table of options does")
        found: dict[str, Any] = {}
        for key, value in pairs:
            found[key] = _TWICE if key in found else value
        return found

    return made
