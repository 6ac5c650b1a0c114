"""Layers that agree: each is filled in one way that all share, or is empty.

Rows of a program cannot say this without a variable for each way. But there are few, and with one of them given, a
layer has few options. So the rule is kept by enumeration: one problem for each way, and the best of their answers is
the best of all. A way may leave a choice among names that count as alike. This file does not know what the names stand
for.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from solvers.problem import Option, Problem
from solvers.refine.joint import paired

Filling = tuple[str, str]
"""The names in the two slots of a layer."""
Alike = tuple[Collection[str], Collection[str]]
"""The names that may stand in the first slot of a layer, and in the second."""


def agreeing(problem: Problem, fillings: Mapping[str, Alike], empty: Filling, layers: int) -> dict[str, Problem]:
    """For each of the fillings, by its name, the problem whose layers hold such names or are empty, offered in pairs
    (`joint.py`), so that `parted` leads back. Slots behind the `layers` have all their options. A filling is left out
    if some layer can neither hold it nor be empty."""
    slots = len(empty) * layers
    behind = tuple(option for option in problem.options if option.first >= slots)
    found = {}
    for name, alike in fillings.items():
        inside = tuple(option for option in problem.options if option.first < slots and _may_fill(option, alike, empty))
        pairs = paired(replace(problem, options=inside), throughout=True).options
        kept = tuple(option for option in pairs if _fits(option.parts, alike, empty))
        if {option.first for option in kept} == set(range(0, slots, len(empty))):
            found[name] = replace(problem, options=kept + behind)
    return found


def _may_fill(option: Option, alike: Alike, empty: Filling) -> bool:
    """Whether it may be in a layer that fits, alone or beside another."""
    if option.span > 1:
        return _fits(option.parts, alike, empty)
    place = option.first % len(empty)
    return option.name in alike[place] or option.name == empty[place]


def _fits(parts: tuple[str, ...], alike: Alike, empty: Filling) -> bool:
    if parts == empty:
        return True
    return len(parts) == len(alike) and all(part in names for part, names in zip(parts, alike, strict=True))
