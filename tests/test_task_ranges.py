"""Every choice goes to one task, neighbours together, and no task has much more to do than another."""

from hypothesis import given
from hypothesis import strategies as st

from blocklib.block import SKIP, Choice
from nas.planning.task_ranges import by_count, by_layers

loads = st.lists(st.integers(1, 50), min_size=1, max_size=24)


@given(loads, st.integers(1, 30))
def test_shares_are_even_runs_of_layers(loads: list[int], tasks: int) -> None:
    choices = [Choice(layer, "ffn", SKIP) for layer in range(len(loads))]
    groups = by_layers(choices, tasks, lambda choice: loads[choice.layer])
    assert [choice for group in groups for choice in group] == choices
    assert 1 <= len(groups) <= tasks
    # A layer sticks out of its share by at most half of itself, at either end.
    most = max(sum(loads[choice.layer] for choice in group) for group in groups)
    assert most <= sum(loads) / tasks + max(loads)


def test_a_layer_is_never_split() -> None:
    choices = [Choice(layer, role, SKIP) for layer in range(3) for role in ("attention", "ffn")]
    assert by_layers(choices, 3, lambda _: 1.0) == [choices[:2], choices[2:4], choices[4:]]
    assert by_layers(choices, 12, lambda _: 1.0) == [choices[:2], choices[2:4], choices[4:]]


@given(st.integers(1, 20), st.integers(1, 30))
def test_a_task_has_no_more_layers_than_asked(layers: int, most: int) -> None:
    choices = [Choice(layer, role, SKIP) for layer in range(layers) for role in ("attention", "ffn")]
    groups = by_count(choices, most)
    assert [choice for group in groups for choice in group] == choices
    sizes = [len({choice.layer for choice in group}) for group in groups]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(groups) == -(-layers // most)
