"""Blockwise distillation trains what it is asked to, nothing else, and the same way whatever is trained beside it."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from parents import random_ids, random_parent, texts_of
from torch import Tensor

from blocklib.block import Choice
from blocklib.distil import Distilled, Progress, Training, distil, normalised_error
from blocklib.errors import NotFiniteError
from blocklib.parent import Parent
from blocklib.stream import delta, embed, rotary, slots, variant

TEXTS = ["L0.attention=kv1", "L1.ffn=ffn12", "L2.attention=linear", "L2.ffn=linear", "L3.ffn=fuse(ffn48,ffn16)"]
CHOICES = [Choice.parse(text) for text in TEXTS]


def trained(
    parent: Parent, trainings: Mapping[Choice, Training], heldout_BT: Tensor | None = None, least_squares: bool = True
) -> dict[Choice, Distilled]:
    """Everything distilled on a little random text."""
    calibration, distillation = (random_ids(parent, 16, 16, seed=seed) for seed in (1, 2))
    heldout_BT = random_ids(parent, 6, 16, seed=3) if heldout_BT is None else heldout_BT
    events = distil(
        parent, trainings, texts_of(parent, calibration, distillation, heldout_BT, batch=4), least_squares=least_squares
    )
    return {event.choice: event for event in events if isinstance(event, Distilled)}


def all_for(tokens: int, learning_rate: float = 1e-2) -> dict[Choice, Training]:
    return {choice: Training(tokens, learning_rate) for choice in CHOICES}


def same(one: Distilled, other: Distilled) -> bool:
    assert one.weights.keys() == other.weights.keys()
    equal = all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())
    losses = [(d.loss_first_weights, d.loss_least_squares, d.loss_trained, d.curve) for d in (one, other)]
    return equal and losses[0] == losses[1]


def test_nothing_of_the_parent_moves() -> None:
    """Even where it could: every parameter of the parent is open to gradients, and none gets any."""
    parent = random_parent()
    before = {name: tensor.clone() for name, tensor in parent.model.state_dict().items()}
    parent.model.requires_grad_(True)
    found = trained(parent, all_for(512))
    assert [name for name, parameter in parent.model.named_parameters() if parameter.grad is not None] == []
    for name, tensor in parent.model.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8)), name
    # The trained weights did move, in a memory of their own.
    own = {tensor.data_ptr() for tensor in parent.model.state_dict().values()}
    for distilled in found.values():
        assert all(tensor.data_ptr() not in own for tensor in distilled.weights.values())


def test_every_parameter_of_a_variant_is_trained() -> None:
    parent = random_parent()
    # From first weights and in small steps, so that training helps: what makes it worse is thrown away.
    trained_weights, untrained = (trained(parent, all_for(tokens, 1e-3), None, False) for tokens in (2048, 0))
    for choice in CHOICES:
        for name, tensor in trained_weights[choice].weights.items():
            # A bias of the keys shifts all of a query's scores alike, before the rotation at least; it may stand still.
            if "k_proj.bias" not in name:
                assert not torch.equal(tensor, untrained[choice].weights[name]), (choice, name)


def test_the_loss_is_what_it_says() -> None:
    """Against plain Python, number by number."""
    target, output = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    pairs = list(zip(output.flatten().tolist(), target.flatten().tolist(), strict=True))
    expected = math.fsum((o - t) ** 2 for o, t in pairs) / math.fsum(t**2 for _, t in pairs)
    assert float(normalised_error(output, target)) == pytest.approx(expected, rel=1e-5)
    assert float(normalised_error(torch.zeros_like(target), target)) == 1
    assert float(normalised_error(target, target)) == 0


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@torch.no_grad()
def test_the_heldout_loss_is_of_what_enters_the_residual(choice: Choice) -> None:
    """The mean over batches, the parent's own sum over the same slots being the target."""
    parent, losses = random_parent(), []
    heldout = random_ids(parent, 6, 16, seed=3)
    found = trained(parent, {choice: Training(0, 1e-3)}, heldout)[choice]
    layer = variant(parent.model, choice, found.weights)
    for ids in heldout.split(4):
        spanned = list(slots(parent.model, ids, choice.first_slot + choice.span))[choice.first_slot :]
        entering = spanned[0].entering_BTD
        target = sum((one.delta_BTD for one in spanned), torch.zeros_like(entering))
        output = delta(layer, entering, rotary(parent.model, embed(parent.model, ids)))
        losses.append(float((output - target).square().sum() / target.square().sum()))
    assert found.loss_least_squares == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.loss_trained is None


def test_every_variant_ends_better_than_it_began(trained_parent: Parent, text_ids: Tensor) -> None:
    """On text it never saw, of a parent that was really trained."""
    shape = trained_parent.shape
    half, last = shape.ffn_width // 2, shape.layers - 1
    texts = [
        "L0.attention=kv1", "L1.attention=linear", f"L1.ffn=ffn{half}", f"L{last}.ffn=ffn{half // 2}", "L2.ffn=linear",
        f"L2.ffn=fuse(ffn{shape.ffn_width},ffn{half})",
    ]  # fmt: skip
    trainings = {Choice.parse(text): Training(12_288, 2e-3) for text in texts}
    events = distil(
        trained_parent, trainings, texts_of(trained_parent, text_ids[:32], text_ids[:128], text_ids[136:], batch=8)
    )
    found = [event for event in events if isinstance(event, Distilled)]
    assert {distilled.choice for distilled in found} == trainings.keys()
    for distilled in found:
        assert distilled.loss_least_squares is not None
        assert distilled.loss_trained is not None
        assert distilled.loss_trained < distilled.loss_least_squares < distilled.loss_first_weights, distilled.choice


def test_the_same_whatever_is_trained_beside_it() -> None:
    """Groups of layers are a matter of how many machines there are, never of the result."""
    parent = random_parent()
    trainings = all_for(640) | {CHOICES[1]: Training(1024, 3e-3, schedule="linear", weight_decay=0.1)}
    together = trained(parent, trainings)
    groups = [CHOICES[:2], CHOICES[2:4], CHOICES[4:]]
    for group in groups:
        apart = trained(parent, {choice: trainings[choice] for choice in group})
        for choice in group:
            assert same(apart[choice], together[choice]), choice


def test_the_same_every_time() -> None:
    first, second = (trained(random_parent(), all_for(512)) for _ in range(2))
    for choice in CHOICES:
        assert same(first[choice], second[choice]), choice


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_every_schedule_learns(schedule: Any) -> None:
    parent, choice = random_parent(), CHOICES[3]
    found = trained(parent, {choice: Training(4096, 3e-3, schedule=schedule)})[choice]
    assert found.curve[-1][0] == 4096
    assert [tokens for tokens, _ in found.curve] == sorted({tokens for tokens, _ in found.curve})
    assert found.curve[-1][1] < found.curve[0][1]


def test_steps_that_are_left_out_have_no_loss() -> None:
    parent = random_parent()
    for choice, distilled in trained(parent, all_for(0), least_squares=False).items():
        assert (distilled.loss_least_squares, distilled.loss_trained, distilled.curve) == (None, None, ())
        assert distilled.loss_first_weights > 0, choice


def test_progress_runs_to_the_end() -> None:
    parent = random_parent()
    texts = [random_ids(parent, 16, 16, seed=seed) for seed in (1, 2, 3)]
    trainings = {CHOICES[0]: Training(256, 1e-3), CHOICES[1]: Training(1000, 1e-3)}
    events = list(distil(parent, trainings, texts_of(parent, *texts, batch=4)))
    assert [type(event) for event in events] == [Progress] * 16 + [Distilled] * 2
    done = [event for event in events if isinstance(event, Progress)]
    assert [event.done_tokens for event in done] == [*range(64, 1000, 64), 1000]
    assert {event.total_tokens for event in done} == {1000}


@pytest.mark.parametrize("least_squares", [True, False])
def test_nan_in_the_parents_activations_is_an_error_with_a_place(least_squares: bool) -> None:
    parent = random_parent()
    parent.model.model.layers[2].mlp.up_proj.weight.data[3, 5] = torch.nan
    with pytest.raises(NotFiniteError, match=r"L2\.ffn=linear: its held-out distillation loss is nan"):
        trained(parent, {choice: Training(64, 1e-3) for choice in CHOICES[:4]}, least_squares=least_squares)
    # The layers before it are not to blame, and can be built.
    assert len(trained(parent, {choice: Training(64, 1e-3) for choice in CHOICES[:3]})) == 3


def test_a_learning_rate_that_diverges_is_an_error_with_a_place() -> None:
    message = r"L1\.ffn=ffn12: the distillation loss is (nan|inf) after \d+ tokens; lower distill\.learning_rate"
    with pytest.raises(NotFiniteError, match=message):
        trained(random_parent(), {CHOICES[1]: Training(2048, 1e30)})


def test_training_that_makes_it_worse_is_thrown_away(trained_parent: Parent, text_ids: Tensor) -> None:
    half = Choice.parse(f"L1.ffn=ffn{trained_parent.shape.ffn_width // 2}")

    def one(training: Training) -> Distilled:
        events = distil(
            trained_parent,
            {half: training},
            texts_of(trained_parent, text_ids[:32], text_ids[:64], text_ids[136:], batch=8),
        )
        return next(event for event in events if isinstance(event, Distilled))

    before, after = one(Training(0, 1e-3)), one(Training(1024, 0.03, schedule="constant"))
    assert after.loss_trained is not None
    assert after.loss_least_squares is not None
    assert after.loss_trained > after.loss_least_squares, "it is a training that does harm"
    assert all(torch.equal(after.weights[name], before.weights[name]) for name in before.weights)
