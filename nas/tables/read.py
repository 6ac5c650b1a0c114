"""A table measured elsewhere: a JSON file read, checked, and made a problem for the solvers.

Three shapes, all in docs/tables.md: a block library (layer -> option -> stats and metrics, a slot a layer), a
replacement library (id -> the layers it stands for, stats and metrics), and our own, whose options span slots. Knows
what each looks like, and dotted paths. Does not know units nor what a number measures: budgets are plain numbers, in
the table's own units.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nas.errors import TableError
from nas.files.strict_json import check_keys, document, is_number, kind, leaves, number, read, shown, taken, whole
from nas.job.units import did_you_mean
from solvers.errors import ProblemError
from solvers.problem import Constraint, Option, Problem

__all__ = ["Entry", "Imported", "load", "parse", "parse_limits"]

_LAYER = re.compile(r"(?:.*[^0-9])?([0-9]+)")
_PART_OF_A_NUMBER = re.compile(r".*(?:(?<![^\W\d_])[.,-]|[+\u2212]|[0-9][eE][+-]?)[0-9]+")
"""Digits that do not stand for themselves: 1.5, 1e3, -1. After a letter, as in model.layers.12, a point or a dash only
sets them apart."""
_MOST_DIGITS = 18
_LIMIT = re.compile(r"\s*([^<>=]+?)\s*(<=|>=|=)\s*(.+?)\s*")
_MOST_SLOTS = 10_000
"""No model has as many layers."""
_COVERS = "parent_layer_indices"
"""The key by which a replacement is recognised."""


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
        return number(self.leaves[path], self.place, path)

    def has(self, path: str) -> bool:
        """Whether a number stands there."""
        return is_number(self.leaves.get(path))


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
    budget: tuple[Constraint, ...] = ()

    def problem(self, objective: str, budget: Sequence[Constraint], maximise: bool = False) -> Problem:
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
                sign * each.number(objective) + 0.0,  # This turns -0.0 into 0.0.
                {path: each.number(path) for path in costs},
            )
            for each in self.entries
        )
        maximums = {limit.cost: limit.value for limit in budget if not limit.minimum}
        minimums = {limit.cost: limit.value for limit in budget if limit.minimum}
        try:
            return Problem(self.slots, options, maximums, minimums)
        except ProblemError as error:
            raise TableError(f"{self.source}: {error}") from error

    @property
    def costs(self) -> tuple[str, ...]:
        """The paths that are summed: those that are a number in every option."""
        return tuple(path for path in self._worth_summing() if all(entry.has(path) for entry in self.entries))

    def place(self, first: int, end: int) -> str:
        """Slots first .. end - 1 for people: by the numbers of their layers, where they are layers."""
        numbers = [_number_of(self.layers[slot]) if self.layers else slot for slot in range(first, end)]
        breaks = [place for place in range(1, len(numbers)) if numbers[place] != numbers[place - 1] + 1]
        runs = [numbers[begin:end] for begin, end in pairwise([0, *breaks, len(numbers)])]
        *named, last = (_range(run[0], run[-1]) for run in runs)
        return f"{', '.join(named)} and {last}" if named else last

    def notes(self) -> Iterator[str]:
        """Remarks about oddities that are no mistakes."""
        numbers = [_number_of(layer) for layer in self.layers]
        gaps = [(before + 1, after - 1) for before, after in pairwise(numbers) if after - before > 1]
        if gaps:
            named = ", ".join(_range(*gap) for gap in gaps)
            yield f"the table has no layer {named}; the sums are of the {self.slots} layers it has"
        for path in self._worth_summing():
            without = next((entry for entry in self.entries if not entry.has(path)), None)
            if without:
                yield f"{path} is not summed; for one, {without.place} has no such number"

    def _worth_summing(self) -> list[str]:
        return [path for path in self._numeric() if path.startswith(self.summed) and path != self.objective]

    def _numeric(self) -> list[str]:
        """Every path that is a number in some option, in the order of the file."""
        return list(dict.fromkeys(path for entry in self.entries for path in entry.leaves if entry.has(path)))

    def _check(self, path: str) -> None:
        if not any(path in entry.leaves for entry in self.entries):
            raise TableError(f"{self.source}: no option has {path!r}; {did_you_mean(path, self._numeric())}")


def load(path: Path) -> Imported:
    """The table in a file. Raises TableError where it cannot be read, or is wrong."""
    return parse(read(path), str(path))


def parse(text: str, where: str) -> Imported:
    """The table that `text` is; messages call it `where`. Raises TableError."""
    found = document(text, where)
    if not isinstance(found, dict) or not found:
        raise TableError(
            f"{where}: a table is an object, of layers, of replacements or of slots and options, not {kind(found)}; "
            "docs/tables.md has an example of each"
        )
    try:
        if {"slots", "options"} & found.keys():
            return _spanning(found, where)
        if any(isinstance(each, dict) and _COVERS in each for each in found.values()):
            return _replacements(found, where)
        return _by_layer(found, where)
    except RecursionError as error:
        raise TableError(f"{where}: it is nested too deep to be a table") from error


def parse_limits(texts: Collection[str]) -> tuple[Constraint, ...]:
    """Limits as on a command line: "stats.memory_mib=80000" or "memory<=8,parameters>=2". Raises TableError."""
    limits: dict[str, Constraint] = {}
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
                f"budget {name}: {text!r} is not a number; a table's budget is a number in the table's own unit"
            )
        limit = Constraint(name, value, minimum=sign == ">=")
        if limit.name in limits:
            raise TableError(f"the budget limits {limit.name} twice")
        limits[limit.name] = limit
    return tuple(limits.values())


def _by_layer(document: Mapping[str, Any], where: str) -> Imported:
    """A block library: every layer a slot, in the order of their numbers."""
    for key in document:
        match = _LAYER.fullmatch(key)
        if match is None or _PART_OF_A_NUMBER.fullmatch(key) or len(match[1]) > _MOST_DIGITS:
            raise TableError(
                f"{where}: {shown(key, repr)} is not a layer: a key ends with a whole number, like 12, layer_12 "
                "or model.layers.12"
            )
    layers = sorted(document, key=_number_of)
    for before, after in pairwise(layers):
        if _number_of(before) == _number_of(after):
            raise TableError(f"{where}: {before!r} and {after!r} are the same layer")
    entries = []
    for slot, layer in enumerate(layers):
        place = f"{where}: layer {_number_of(layer)}"
        options = taken(document[layer], dict, place, 'an object, like {"ffn_0.5": {"stats": {...}, "metrics": {...}}}')
        if not options:
            raise TableError(f"{place} has no options; give at least one")
        for name, option in options.items():
            at = f'{place}, option "{name}"'
            numbers = taken(option, dict, at, 'an object, like {"stats": {...}, "metrics": {...}}')
            entries.append(Entry(at, slot, 1, name, leaves(numbers, at)))
    return Imported(where, len(layers), tuple(entries), tuple(layers), summed="stats.")


def _replacements(document: Mapping[str, Any], where: str) -> Imported:
    """The table of a multi-layer replacement solver: each entry names its layers. The layers that any of
    them names are the slots, in the order of their numbers."""
    right = f'an object, like {{"{_COVERS}": [3, 4], "stats": {{...}}, "metrics": {{...}}}}'
    found: dict[str, tuple[list[int], dict[str, Any]]] = {}
    for name, replacement in document.items():
        place = f'{where}: replacement "{name}"'
        option = taken(replacement, dict, place, right)
        found[name] = _covered(option.get(_COVERS), place), option
    layers = sorted({layer for covered, _ in found.values() for layer in covered})
    slot_of = {layer: slot for slot, layer in enumerate(layers)}
    entries = []
    for name, (covered, option) in found.items():
        place = f'{where}: replacement "{name}"'
        numbers = leaves({key: value for key, value in option.items() if key != _COVERS}, place)
        entries.append(Entry(place, slot_of[covered[0]], len(covered), name, numbers))
    return Imported(where, len(layers), tuple(entries), tuple(map(str, layers)), summed="stats.")


def _covered(indices: object, place: str) -> list[int]:
    """The layers that a replacement stands for, by number. They follow each other, in whatever order they are named."""
    given = taken(indices, list, f"{place}: {_COVERS}", "a list of layers, like [3, 4]")
    layers = [whole(layer, f"{place}: {_COVERS}[{index}]", 0, _MOST_SLOTS) for index, layer in enumerate(given)]
    if not layers:
        raise TableError(f"{place}: {_COVERS} is empty; name the layers that it stands for")
    layers.sort()
    for before, after in pairwise(layers):
        if before == after:
            raise TableError(f"{place}: {_COVERS} names layer {before} twice")
        if after != before + 1:
            raise TableError(
                f"{place}: {_COVERS} names {before} and {after} and no layer between; a replacement stands for "
                "consecutive layers"
            )
    return layers


def _spanning(document: Mapping[str, Any], where: str) -> Imported:
    """Our own shape: options that say which slots they fill."""
    check_keys(document, ("slots", "options", "budget"), where)
    slots = whole(document.get("slots"), f"{where}: slots", 1, _MOST_SLOTS)
    options = taken(document.get("options"), list, f"{where}: options", "a list of objects")
    entries = tuple(_entry(option, index, where) for index, option in enumerate(options))
    return Imported(where, slots, entries, objective="score", budget=_own_budget(document.get("budget", {}), where))


def _entry(found: object, index: int, where: str) -> Entry:
    place = f"{where}: options[{index}]"
    right = 'an object, like {"first": 0, "span": 1, "name": "kv8", "score": 0.1, "costs": {"latency_s": 0.001}}'
    option: dict[str, Any] = taken(found, dict, place, right)
    check_keys(option, ("first", "span", "name", "score", "costs"), place)
    name = taken(option.get("name"), str, f"{place}: name", "text")
    place += f', option "{name}"'
    costs = leaves(taken(option.get("costs", {}), dict, f"{place}: costs", "an object of numbers"), place)
    for cost, value in costs.items():
        if value is not None:
            number(value, place, cost)
    if "score" in costs:
        raise TableError(f"{place}: a cost cannot be called score, the name of the minimised number; rename it")
    score = leaves({"score": option["score"]} if "score" in option else {}, place)
    span = whole(option["span"], f"{place}: span", 1, _MOST_SLOTS) if "span" in option else 1
    first = whole(option.get("first"), f"{place}: first", 0, _MOST_SLOTS)
    return Entry(place, first, span, name, score | costs)


def _own_budget(budget: object, where: str) -> tuple[Constraint, ...]:
    """A number is a maximum; `{"min": .., "max": ..}` says which it is."""
    limits = []
    place = f"{where}: budget"
    for cost, asked in taken(budget, dict, place, "an object of numbers").items():
        sides = asked if isinstance(asked, dict) else {"max": asked}
        check_keys(sides, ("min", "max"), f"{place}.{cost}")
        if not sides:
            raise TableError(f"{place}: {cost} has neither a min nor a max; give one, or leave it out")
        for path, value in leaves({cost: asked}, place).items():
            number(value, place, path)
        for side, value in sides.items():
            limits.append(Constraint(cost, number(value, place, f"{cost}.{side}"), minimum=side == "min"))
    return tuple(limits)


def _range(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}..{last}"


def _number_of(layer: str) -> int:
    match = _LAYER.fullmatch(layer)
    assert match, "a layer's key was checked"
    return int(match[1])
