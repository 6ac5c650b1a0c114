"""A joint score is not the sum of its parts' scores.

A problem may hold an option "kv1+ffn8" over both slots of a layer beside "kv1" and "ffn8" for one each. Minimising, a
solver would take the pair where it scores better than its parts and the parts where the pair scores worse: it would use
a joint score only where it flatters. Here each layer that has such an option is offered in pairs throughout: those
scored together with their own score, the others with the sum of their parts'. This file knows names joined by "+", not
what they stand for.
"""

from collections.abc import Sequence
from dataclasses import replace

from solvers.problem import Option, Problem

_SLOTS = 2
"""Slots of a layer."""


def paired(problem: Problem) -> Problem:
    """The same problem with the layers that have a joint option offered in pairs.

    A layer's first slot may still be filled alone, where what spans layers begins at its second.
    """
    found: list[Option] = []
    by_first: dict[int, list[Option]] = {}
    for option in problem.options:
        by_first.setdefault(option.first, []).append(option)
    for first in range(0, problem.slots, _SLOTS):
        here, second = by_first.get(first, []), by_first.get(first + 1, [])
        joint = {option.name for option in here if _is_joint(option)}
        if not joint:
            found += here + second
            continue
        singles = [[option for option in options if option.span == 1] for options in (here, second)]
        spanning = [option for option in second if option.span > 1]
        found += [option for option in here if option.span > 1 or spanning] + spanning
        found += [_sum(one, other) for one in singles[0] for other in singles[1] if _name(one, other) not in joint]
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
            one, _, other = option.name.partition("+")
            found += [parts[option.first, one], parts[option.first + 1, other]]
    return tuple(found)


def joined(options: Sequence[Option], problem: Problem) -> tuple[Option, ...]:
    """Options of a problem, in slot order, as options of `problem`, which is it `paired`. Undoes `parted`."""
    own = {option.key: option for option in problem.options}
    found: list[Option] = []
    left = list(options)
    while left:
        one = left.pop(0)
        pair = own.get((one.first, _SLOTS, _name(one, left[0]))) if left else None
        if pair is not None and one.span == left[0].span == 1:
            left.pop(0)
        else:
            pair = own[one.key]
        found.append(pair)
    return tuple(found)


def filled(options: Sequence[Option]) -> dict[int, str]:
    """The name at each slot: a part of the option's name where it names one a slot, else all of it."""
    found: dict[int, str] = {}
    for option in options:
        parts = option.name.split("+")
        if len(parts) == option.span:
            found |= dict(enumerate(parts, option.first))
        else:
            found |= {slot: f"{option.name} from {option.first}" for slot in range(option.first, option.end)}
    return found


def _is_joint(option: Option) -> bool:
    return option.span == _SLOTS and "+" in option.name


def _name(one: Option, other: Option) -> str:
    return f"{one.name}+{other.name}"


def _sum(one: Option, other: Option) -> Option:
    costs = {name: value + other.costs[name] for name, value in one.costs.items()}
    return Option(one.first, _SLOTS, _name(one, other), one.score + other.score, costs)
