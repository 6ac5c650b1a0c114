"""A table measured elsewhere: a JSON file read, checked, and made a problem for the solvers.

Two shapes, both in docs/tables.md: a block library (layer -> option -> stats and metrics, a slot a layer), and our own,
whose options span slots. Knows JSON, dotted paths, and how to say what is wrong with a number and where it stands. Does
not know units nor what a number measures: budgets are plain numbers, in the table's own units. Standard library only.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nas.units import did_you_mean
from solvers.problem import Limit, Option, Problem

_LAYER = re.compile(r"(?:.*[^0-9])?([0-9]+)")
_LIMIT = re.compile(r"\s*([^<>=]+?)\s*(<=|>=|=)\s*(.+?)\s*")
_TWICE = object()
"""Stands for what a key has where one object has it twice: which of the two is meant, nobody knows."""

_LARGEST = 1e300
"""Numbers up to here can be summed over any model's layers."""


class TableError(ValueError):
    """A table, or what is asked of it, is wrong: the file, the layer and the option, the path, what would be right."""


@dataclass(frozen=True)
class Entry:
    """An option as the file has it: what stands at its paths, numbers and all else. `place` is for the user."""

    place: str
    first: int
    span: int
    name: str
    leaves: Mapping[str, object]

    def number(self, path: str) -> float:
        """Raises TableError where there is none."""
        if path not in self.leaves:
            raise TableError(f"{self.place}: {path} is missing")
        value = self.leaves[path]
        if not _is_number(value):
            raise TableError(f"{self.place}: {path} is {json.dumps(value)}, not a number")
        return float(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Imported:
    """A table. `layers` are a block library's own names of its slots; our own shape has none.

    `summed` starts the paths whose sums are worth telling. `objective` and `budget` are what the file itself asks for.
    """

    source: str
    slots: int
    entries: tuple[Entry, ...]
    layers: tuple[str, ...] = ()
    summed: str = ""
    objective: str | None = None
    budget: tuple[Limit, ...] = ()

    def problem(self, objective: str, budget: Sequence[Limit], maximise: bool = False) -> Problem:
        """The least, or the most, of `objective` within the budget. Every cost there is a sum of is among its costs.

        Raises TableError where something asked for is unknown, or no number in every option.
        """
        for path in (objective, *(limit.cost for limit in budget)):
            self._check(path)
        costs = list(dict.fromkeys([*(limit.cost for limit in budget), *self.costs]))
        sign = -1 if maximise else 1
        options = tuple(
            Option(
                each.first,
                each.span,
                each.name,
                sign * each.number(objective) + 0.0,  # Of -0.0 this makes 0.0.
                {path: each.number(path) for path in costs},
            )
            for each in self.entries
        )
        maximums = {limit.cost: limit.value for limit in budget if not limit.minimum}
        minimums = {limit.cost: limit.value for limit in budget if limit.minimum}
        try:
            return Problem(self.slots, options, maximums, minimums)
        except ValueError as error:
            raise TableError(f"{self.source}: {error}") from error

    @property
    def costs(self) -> tuple[str, ...]:
        """The paths that are summed: those that are a number in every option."""
        return tuple(path for path in self._worth_summing() if all(_has(entry, path) for entry in self.entries))

    def place(self, first: int, end: int) -> str:
        """Slots first .. end - 1 for people: by the numbers of their layers, where they are layers."""
        begin, last = (_number_of(self.layers[slot]) if self.layers else slot for slot in (first, end - 1))
        return f"{begin}" if begin == last else f"{begin}..{last}"

    def notes(self) -> Iterator[str]:
        """What is odd about it, yet no mistake."""
        numbers = [_number_of(layer) for layer in self.layers]
        gaps = [(before + 1, after - 1) for before, after in pairwise(numbers) if after - before > 1]
        if gaps:
            named = ", ".join(f"{first}" if first == last else f"{first}..{last}" for first, last in gaps)
            yield f"the table has no layer {named}; the sums are of the {self.slots} layers it has"
        for path in self._worth_summing():
            without = next((entry for entry in self.entries if not _has(entry, path)), None)
            if without:
                yield f"{path} is not summed; for one, {without.place} has no such number"

    def _worth_summing(self) -> list[str]:
        return [path for path in self._numeric() if path.startswith(self.summed) and path != self.objective]

    def _numeric(self) -> list[str]:
        """Every path that is a number in some option, in the order of the file."""
        return list(dict.fromkeys(path for entry in self.entries for path in entry.leaves if _has(entry, path)))

    def _check(self, path: str) -> None:
        if not any(path in entry.leaves for entry in self.entries):
            raise TableError(f"{self.source}: no option has {path!r}; {did_you_mean(path, self._numeric())}")


def load(path: Path) -> Imported:
    """The table in a file. Raises TableError where it cannot be read, or is wrong."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TableError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: not UTF-8 at byte {error.start}") from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Imported:
    """The table that `text` is; messages call it `where`. Raises TableError."""
    try:
        document = json.loads(text, object_pairs_hook=_object)
        if not isinstance(document, dict) or not document:
            raise TableError(
                f"{where}: a table is an object, of layers or of slots and options, not {_kind(document)}; "
                "docs/tables.md has an example of each"
            )
        return _spanning(document, where) if {"slots", "options"} & document.keys() else _by_layer(document, where)
    except json.JSONDecodeError as error:
        raise TableError(f"{where}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    except TableError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise TableError(f"{where}: {error}") from error
    except RecursionError as error:
        raise TableError(f"{where}: it is nested too deep to be a table") from error


def parse_limits(texts: Collection[str]) -> tuple[Limit, ...]:
    """Limits as on a command line: "stats.memory_mib=80000" or "memory<=8,parameters>=2". Raises TableError."""
    limits: dict[str, Limit] = {}
    for part in (part for text in texts for part in text.split(",")):
        match = _LIMIT.fullmatch(part)
        if match is None:
            raise TableError(
                f"budget {part.strip()!r} is not NAME=NUMBER, a maximum, nor 'NAME>=NUMBER', a minimum "
                "(in quotes: a shell takes > for itself)"
            )
        name, sign, text = match.groups()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise TableError(
                f"budget {name}: {text!r} is no number; a table's budget is a number in the table's own unit"
            )
        limit = Limit(name, value, minimum=sign == ">=")
        if limit.name in limits:
            raise TableError(f"the budget limits {limit.name} twice")
        limits[limit.name] = limit
    return tuple(limits.values())


def _by_layer(document: Mapping[str, Any], where: str) -> Imported:
    """A block library: every layer a slot, in the order of their numbers."""
    for key in document:
        if not _LAYER.fullmatch(key):
            raise TableError(
                f"{where}: {key!r} is no layer; its key ends with its number, like 12, layer_12 or block_12"
            )
    layers = sorted(document, key=_number_of)
    for before, after in pairwise(layers):
        if _number_of(before) == _number_of(after):
            raise TableError(f"{where}: {before!r} and {after!r} are the same layer")
    entries = []
    for slot, layer in enumerate(layers):
        place = f"{where}: layer {_number_of(layer)}"
        options = _taken(
            document[layer], dict, place, 'an object, like {"ffn_0.5": {"stats": {...}, "metrics": {...}}}'
        )
        if not options:
            raise TableError(f"{place} has no options; give what stands there, if only one")
        for name, option in options.items():
            at = f'{place}, option "{name}"'
            numbers = _taken(option, dict, at, 'an object, like {"stats": {...}, "metrics": {...}}')
            entries.append(Entry(at, slot, 1, name, _leaves(numbers, at)))
    return Imported(where, len(layers), tuple(entries), tuple(layers), summed="stats.")


def _spanning(document: Mapping[str, Any], where: str) -> Imported:
    """Our own shape: options that say which slots they fill."""
    _check_keys(document, ("slots", "options", "budget"), where)
    slots = _count(document, "slots", 1, where)
    options = _taken(document.get("options"), list, f"{where}: options", "a list of objects")
    entries = tuple(_entry(option, index, where) for index, option in enumerate(options))
    return Imported(where, slots, entries, objective="score", budget=_own_budget(document.get("budget", {}), where))


def _entry(found: object, index: int, where: str) -> Entry:
    place = f"{where}: options[{index}]"
    right = 'an object, like {"first": 0, "span": 1, "name": "kv8", "score": 0.1, "costs": {"latency_s": 0.001}}'
    option: dict[str, Any] = _taken(found, dict, place, right)
    _check_keys(option, ("first", "span", "name", "score", "costs"), place)
    name = _taken(option.get("name"), str, f"{place}: name", "text")
    place += f', option "{name}"'
    costs = _leaves(_taken(option.get("costs", {}), dict, f"{place}: costs", "an object of numbers"), place)
    if "score" in costs:
        raise TableError(f"{place}: a cost cannot be called score, that is what is minimised")
    score = _leaves({"score": option["score"]} if "score" in option else {}, place)
    span = _count(option, "span", 1, place) if "span" in option else 1
    return Entry(place, _count(option, "first", 0, place), span, name, score | costs)


def _own_budget(budget: object, where: str) -> tuple[Limit, ...]:
    """A number is a maximum; `{"min": .., "max": ..}` says which it is."""
    limits = []
    place = f"{where}: budget"
    for cost, asked in _taken(budget, dict, place, "an object of numbers").items():
        sides = asked if isinstance(asked, dict) else {"max": asked}
        _check_keys(sides, ("min", "max"), f"{place}.{cost}")
        if not sides:
            raise TableError(f"{place}: {cost} has neither a min nor a max; give one, or leave it out")
        for path, value in _leaves({cost: asked}, place).items():
            if not _is_number(value):
                raise TableError(f"{place}: {path} is {json.dumps(value)}, not a number")
        for side, value in sides.items():
            if not _is_number(value):
                raise TableError(f"{place}: {cost}.{side} is not a number")
        limits += [Limit(cost, float(value), minimum=side == "min") for side, value in sides.items()]
    return tuple(limits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = _TWICE if key in found else value
    return found


def _leaves(value: object, place: str, path: str = "") -> dict[str, object]:
    """All that is no object and no list, by dotted path. Raises TableError where one is NaN, infinite or ambiguous."""
    if isinstance(value, dict | list):
        found: dict[str, object] = {}
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            for leaf, what in _leaves(inner, place, f"{path}.{key}" if path else str(key)).items():
                if leaf in found:
                    raise TableError(f"{place}: {leaf} is given twice")
                found[leaf] = what
        return found
    if value is _TWICE:
        raise TableError(f"{place}: {path} is given twice")
    if isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) <= _LARGEST:
        # JSON's words for what no JSON may hold: NaN, Infinity, -Infinity.
        told = f"beyond {_LARGEST:g}" if isinstance(value, int) or math.isfinite(value) else json.dumps(value)
        raise TableError(f"{place}: {path} is {told}; give a finite number, or leave the option out")
    return {path: value}


def _has(entry: Entry, path: str) -> bool:
    return _is_number(entry.leaves.get(path))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number_of(layer: str) -> int:
    match = _LAYER.fullmatch(layer)
    assert match, "a layer's key was checked"
    return int(match[1])


def _check_keys(found: Mapping[str, object], known: Collection[str], place: str) -> None:
    for key in found:
        if key not in known:
            raise TableError(f"{place}: unknown key {key!r}; {did_you_mean(key, known)}")


def _count(found: Mapping[str, object], key: str, least: int, place: str) -> int:
    value = found.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise TableError(f"{place}: {key} is a whole number from {least} on, not {_kind(value)}")
    return value


def _taken(value: object, kind: type, place: str, right: str) -> Any:
    """A value of the kind it must have."""
    if value is _TWICE:
        raise TableError(f"{place} is given twice")
    if not isinstance(value, kind):
        raise TableError(f"{place} is {_kind(value)}; it is {right}")
    return value


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    if value is _TWICE:
        return "given twice"
    if isinstance(value, dict | list):
        kind = "object" if isinstance(value, dict) else "list"
        return f"an empty {kind}" if not value else f"an {kind}" if kind == "object" else f"a {kind}"
    return "missing or null" if value is None else json.dumps(value)
