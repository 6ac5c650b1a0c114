"""Layers that agree: each is filled like all others, or is empty.

Rows of a program cannot say this without a variable for each filling. But there are few fillings, and with one of them
given, a layer has two options at most. So the rule is kept by enumeration: one problem for each filling, and the best
of their answers is the best of all. This file does not know what the names stand for.
"""

from collections.abc import Sequence
from dataclasses import replace

from solvers.problem import Problem
from solvers.refine.joint import paired

Filling = tuple[str, str]
"""The names in the two slots of a layer."""


def agreeing(problem: Problem, fillings: Sequence[Filling], empty: Filling) -> dict[str, Problem]:
    """For each filling, by its name, the problem whose layers hold it or are empty, offered in pairs (`joint.py`), so
    that `parted` leads back. A filling is left out if some layer can neither hold it nor be empty."""
    pairs = paired(problem, throughout=True)
    found = {}
    for filling in fillings:
        kept = tuple(option for option in pairs.options if option.parts in (filling, empty))
        if {option.first for option in kept} == set(range(0, problem.slots, len(empty))):
            found["+".join(filling)] = replace(pairs, options=kept)
    return found
