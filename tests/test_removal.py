"""The loss without a layer, for many candidates at once: what is common to them is computed once."""

from parents import random_ids, random_parent

from nas.scoring.layer_removal import loss_without

LAYERS = 8


def test_candidates_share_what_comes_before_them() -> None:
    """By hand: layers 0 to 5 once, and after each candidate all that follow it; what is removed is never run."""
    parent = random_parent(num_hidden_layers=LAYERS)
    ran: list[int] = []
    for index, layer in enumerate(parent.model.model.layers):
        assert layer.mlp is not None
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    loss_without(parent, random_ids(parent), (), range(1, 7))
    assert [ran.count(layer) for layer in range(LAYERS)] == [1, 1, 2, 3, 4, 5, 5, 6]
    ran.clear()
    loss_without(parent, random_ids(parent), (3, 6), (2, 5))
    assert [ran.count(layer) for layer in range(LAYERS)] == [1, 1, 1, 0, 2, 1, 0, 2]
