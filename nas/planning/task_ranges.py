"""Divide work between tasks. Arithmetic only."""

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import accumulate

from blocklib.block import Choice


def by_layers(choices: Sequence[Choice], tasks: int, work: Callable[[Choice], float]) -> list[list[Choice]]:
    """At most `tasks` groups of about equal `work`. Each has neighbouring layers, which can share the parent's passes.

    A layer is never split.
    """
    layers = sorted({choice.layer for choice in choices})
    loads = [sum(work(choice) for choice in choices if choice.layer == layer) for layer in layers]
    # A layer goes into the group that the middle of its work falls into.
    middles = [up_to - load / 2 for up_to, load in zip(accumulate(loads), loads, strict=True)]
    group = {layer: int(tasks * middle / sum(loads)) for layer, middle in zip(layers, middles, strict=True)}
    groups = [[choice for choice in choices if group[choice.layer] == task] for task in range(tasks)]
    return [group for group in groups if group]


def distinct(groups: Iterable[Sequence[Choice]]) -> Collection[Sequence[Choice]]:
    """The groups, those that hold the same in other layers once."""
    return {tuple((choice.role, choice.what) for choice in group): group for group in groups}.values()


def prefix_tokens(groups: Iterable[Sequence[Choice]], tokens: int, layers: int) -> float:
    """How many tokens a parent of so many layers would be run over, if each group ran it up to its last layer over
    `tokens`."""
    return tokens * sum(max(choice.end_layer for choice in group) for group in groups) / layers


def by_count(choices: Sequence[Choice], layers_per_task: int) -> list[list[Choice]]:
    """Groups of neighbouring layers, of about equal number and never more than `layers_per_task`, whatever their work.

    As few groups as that allows. A layer is never split.
    """
    layers = sorted({choice.layer for choice in choices})
    tasks = -(-len(layers) // layers_per_task)
    group = {layer: index * tasks // len(layers) for index, layer in enumerate(layers)}
    return [[choice for choice in choices if group[choice.layer] == task] for task in range(tasks)]
