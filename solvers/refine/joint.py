"""A joint score is not the sum of its parts' scores.

A problem may hold an option "kv1+ffn8" over both slots of a layer beside "kv1" and "ffn8" for one each. Minimising, a
solver would take the pair where it scores better than its parts and the parts where the pair scores worse: it would use
a joint score only where it flatters. Here each layer that has such an option is offered in pairs throughout: those
scored together with their own score, the others with the sum of their parts'. This file does not know what the names
stand for.
"""

from collections.abc import Sequence
from dataclasses import replace

from solvers.problem import Option, Problem

_SLOTS = 2
"""Slots of a layer."""


def paired(problem: Problem, throughout: bool = False) -> Problem:
    """The same problem with the layers that have a joint option offered in pairs; `throughout`: all layers.

    A layer's first slot may still be filled alone, where what spans layers begins at its second.
    """
    found: list[Option] = []
    by_first: dict[int, list[Option]] = {}
    for option in problem.options:
        by_first.setdefault(option.first, []).append(option)
    for first in range(0, problem.slots, _SLOTS):
        here, second = by_first.get(first, []), by_first.get(first + 1, [])
        joint = {option.parts for option in here if option.span == _SLOTS and option.parts}
        if not joint and not throughout:
            found += here + second
            continue
        singles = [[option for option in options if option.span == 1] for options in (here, second)]
        spanning = [option for option in second if option.span > 1]
        found += [option for option in here if option.span > 1 or spanning] + spanning
        found += [_sum(one, other) for one in singles[0] for other in singles[1] if (one.name, other.name) not in joint]
    return replace(problem, options=tuple(found))


def parted(options: Sequence[Option], problem: Problem) -> tuple[Option, ...]:
    """Options of `paired(problem)` as options of `problem` itself."""
    own = {option.key: option for option in problem.options}
    parts = {(option.first, option.name): option for option in problem.options if option.span == 1}
    found: list[Option] = []
    for option in options:
        if option.key in own:
            found.append(own[option.key])
        else:
            found += [parts[slot, name] for slot, name in enumerate(option.parts, option.first)]
    return tuple(found)


def joined(options: Sequence[Option], problem: Problem) -> tuple[Option, ...]:
    """Options of a problem, in slot order, as options of `problem`, which is it `paired`. Undoes `parted`."""
    own = {option.key: option for option in problem.options}
    pairs = {(option.first, option.parts): option for option in problem.options if option.span == _SLOTS}
    found: list[Option] = []
    left = list(options)
    while left:
        one = left.pop(0)
        pair = pairs.get((one.first, (one.name, left[0].name))) if left else None
        if pair is not None and one.span == left[0].span == 1:
            left.pop(0)
        else:
            pair = own[one.key]
        found.append(pair)
    return tuple(found)


def filled(options: Sequence[Option]) -> dict[int, str]:
    """The name at each slot: that of the option's part there, or of the option and the slot where it begins."""
    found: dict[int, str] = {}
    for option in options:
        whole = option.name if option.span == 1 else f"{option.name} from {option.first}"
        found |= dict(enumerate(option.parts or [whole] * option.span, option.first))
    return found


def _sum(one: Option, other: Option) -> Option:
    costs = {name: value + other.costs[name] for name, value in one.costs.items()}
    parts = one.name, other.name
    return Option(one.first, _SLOTS, "+".join(parts), one.score + other.score, costs, parts)
