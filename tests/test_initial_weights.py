"""The least-squares fit against a textbook solution, and what it promises of text it was not fitted on."""

import pytest
import torch
from parents import random_ids, random_parent
from torch import Tensor

from blocklib.activations import cached
from blocklib.block import Choice
from blocklib.distil import normalised_error
from blocklib.initial_weights import build, fit_output
from blocklib.kinds import kind_of
from blocklib.parent import Parent
from blocklib.stream import Rotary, delta, embed, inputs_of, rotary, slots, variant

# As multiples of the mean square of the projection's inputs, summed over tokens.
RIDGES = (1e-4, 1e-2, 1.0)


def passes(parent: Parent, choice: Choice, ids_BT: Tensor, batch: int) -> tuple[list[Tensor], list[Tensor]]:
    """For each batch: what enters the choice's slots, and what the parent adds over them."""
    entering, targets = [], []
    for ids in ids_BT.split(batch):
        with torch.no_grad():
            seen = list(slots(parent.model, ids, choice.first_slot + choice.span))[choice.first_slot :]
        entering.append(seen[0].entering_BTD)
        targets.append(torch.stack([one.delta_BTD for one in seen]).sum(0))
    return entering, targets


def tables_of(parent: Parent, ids_BT: Tensor) -> Rotary:
    return rotary(parent.model, embed(parent.model, ids_BT))


@torch.no_grad()
def projected(
    parent: Parent, choice: Choice, weights: dict[str, Tensor], entering: list[Tensor], tables: Rotary
) -> tuple[Tensor, Tensor]:
    """A subblock's output, and the inputs of its output projection, over all batches: [N, D] and [N, M]."""
    layer, name = variant(parent.model, choice, weights), kind_of(*choice.subblocks[0]).output_projection
    assert name is not None
    with inputs_of(layer.get_submodule(name)) as seen:
        outputs = [delta(layer, residual, tables) for residual in entering]
    return torch.cat(outputs).flatten(0, 1).double(), torch.cat(seen).flatten(0, 1).double()


def ridge_by_lstsq(features_NM: Tensor, missing_ND: Tensor, ridge: float) -> Tensor:
    """The textbook way, by QR: ridge regression is least squares on the data and sqrt(ridge) I below it."""
    damping = (ridge * features_NM.square().sum(0).mean()).sqrt() * torch.eye(features_NM.shape[1]).double()
    below = torch.zeros(features_NM.shape[1], missing_ND.shape[1]).double()
    found: Tensor = torch.linalg.lstsq(torch.cat([features_NM, damping]), torch.cat([missing_ND, below])).solution
    return found


@pytest.mark.parametrize(
    "text", ["L1.ffn=ffn12", "L2.attention=linear", "L1.attention=kv1", "L1.ffn=fuse(ffn48,ffn48)"]
)
def test_it_is_ridge_regression(text: str) -> None:
    parent, choice = random_parent(), Choice.parse(text)
    ids = random_ids(parent, sequences=16, tokens=24)
    (built,) = build(parent, [choice], cached(parent.model, ids, 4), batch=4, fit=True)
    name = f"{kind_of(*choice.subblocks[0]).output_projection}.weight"
    assert {key for key in built.first if not torch.equal(built.first[key], built.fitted[key])} == {name}

    entering, targets = passes(parent, choice, ids, batch=4)
    output, features = projected(parent, choice, built.first, entering, tables_of(parent, ids))
    missing = torch.cat(targets).flatten(0, 1).double() - output
    quarter = len(features) * 3 // 4

    def heldout_error(ridge: float) -> float:
        change = ridge_by_lstsq(features[:quarter], missing[:quarter], ridge)
        return float((features[quarter:] @ change - missing[quarter:]).square().sum())

    change = ridge_by_lstsq(features, missing, min(RIDGES, key=heldout_error))
    torch.testing.assert_close(built.fitted[name].double(), built.first[name] + change.T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "granite"])
@pytest.mark.parametrize("text", ["L1.ffn=ffn12", "L2.attention=linear", "L0.attention=kv2"])
def test_what_can_be_reached_is_reached(text: str, family: str) -> None:
    """The target is the subblock's own output with another projection: the fit finds it."""
    parent, choice = random_parent(family, mlp_bias=False, attention_bias=False), Choice.parse(text)
    ids = random_ids(parent, sequences=16, tokens=24)
    tables = tables_of(parent, ids)
    (built,) = build(parent, [choice], cached(parent.model, ids, 4), batch=4, fit=False)
    assert built.fitted is built.first
    entering, _ = passes(parent, choice, ids, batch=4)
    name = f"{kind_of(*choice.subblocks[0]).output_projection}.weight"
    wanted = torch.randn(built.first[name].shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        other = variant(parent.model, choice, built.first | {name: wanted})
        targets = [delta(other, residual, tables) for residual in entering]
        weights = fit_output(parent, choice, built.first, zip(entering, targets, strict=True), 4)
        fitted = variant(parent.model, choice, weights)
        first = variant(parent.model, choice, built.first)
        errors = [float(normalised_error(delta(layer, entering[-1], tables), targets[-1])) for layer in (first, fitted)]
    assert errors[0] > 0.5
    assert errors[1] < 1e-4


def test_no_variant_is_worse_on_the_text_held_out(trained_parent: Parent, text_ids: Tensor) -> None:
    shape = trained_parent.shape
    kinds = [
        *(f"attention={spelling}" for spelling in (f"kv{shape.kv_heads // 2}", "linear")),
        *(f"ffn={spelling}" for spelling in (f"ffn{shape.ffn_width // 2}", "ffn8", "linear")),
        f"ffn=fuse(ffn{shape.ffn_width},ffn{shape.ffn_width})",
    ]
    choices = [Choice.parse(f"L{layer}.{kind}") for layer in (0, 2, shape.layers - 2) for kind in kinds]
    ids = text_ids[:32]
    tables = tables_of(trained_parent, ids)
    better = 0
    for built in build(trained_parent, choices, cached(trained_parent.model, ids, 8), batch=8, fit=True):
        entering, targets = passes(trained_parent, built.choice, ids[24:], batch=8)
        target = torch.cat(targets).flatten(0, 1).double()
        first, fitted = (
            float((projected(trained_parent, built.choice, weights, entering, tables)[0] - target).square().mean())
            for weights in (built.first, built.fitted)
        )
        assert fitted <= first, built.choice
        better += fitted < first
    assert better >= len(choices) - 1


def test_every_choice_is_built_once_with_what_it_spans(trained_parent: Parent, text_ids: Tensor) -> None:
    """Alone or among others, the same weights."""
    width = trained_parent.shape.ffn_width
    texts = [f"L1.ffn=fuse(ffn{width},ffn{width},ffn8)", "L3.ffn=ffn16", "L1.attention=kv1", "L2.ffn=linear"]
    choices = [Choice.parse(text) for text in texts]
    together = {
        built.choice: built
        for built in build(trained_parent, choices, cached(trained_parent.model, text_ids[:8], 2), batch=2, fit=True)
    }
    assert together.keys() == set(choices)
    for choice in choices:
        (alone,) = build(trained_parent, [choice], cached(trained_parent.model, text_ids[:8], 2), batch=2, fit=True)
        for name, tensor in alone.fitted.items():
            assert torch.equal(tensor, together[choice].fitted[name]), (choice, name)


def test_too_little_text_is_said() -> None:
    parent = random_parent()
    activations = cached(parent.model, random_ids(parent, sequences=1), 4)
    with pytest.raises(ValueError, match=r"at least two calibration sequences.*raise data\.calibration_tokens"):
        list(build(parent, [Choice.parse("L1.ffn=ffn8")], activations, batch=4, fit=True))
