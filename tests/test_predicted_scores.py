"""Scores of precisions, predicted from one that was measured at the same slot, are near to measured ones."""

import pytest
from torch import Tensor

from blocklib.activations import ComputedActivations
from blocklib.assemble import parent_part
from blocklib.block import Choice, Role
from blocklib.parent import Parent
from blocklib.precisions.parts import as_floats
from blocklib.precisions.round_library import round_parts
from nas.scoring.fidelity import Fidelity
from nas.scoring.replace_one import score
from nas.scoring.rounding_error import OWN, predicted, rounding_errors
from nas.stages.predict_scores import anchor_of

COARSE, FINER = "q4_0", ("q5_1", "q5_0", "q4_1")


def at(parent: Parent, layer: int, role: Role, precision: str) -> Choice:
    (own,) = [choice.what for choice in parent.architecture.choices() if (choice.layer, choice.role) == (layer, role)]
    return Choice.parse(f"L{layer}.{role}={own}@{precision}")


def test_a_prediction_is_near_to_the_measured_score(trained_parent: Parent, text_ids: Tensor) -> None:
    parent, shape = trained_parent, trained_parent.shape
    slots: list[tuple[int, Role]] = [(0, "attention"), (2, "ffn"), (shape.layers - 1, "attention")]
    wanted = [at(parent, *slot, precision) for slot in slots for precision in (COARSE, *FINER)]
    own = {choice: parent_part(parent, choice.layer, choice.role) for choice in wanted}
    stored = dict(
        round_parts(parent, wanted, lambda part: own[at(parent, part.layer, part.role, COARSE)], text_ids[:16], 4)
    )
    floats = {choice: as_floats(choice, tensors, shape) for choice, tensors in stored.items()}
    *_, measured = score(parent, floats, ComputedActivations(parent.model, text_ids[80:112]))
    assert isinstance(measured, dict)
    held = floats | {choice.unrounded: weights for choice, weights in own.items()}
    errors = dict(rounding_errors(parent, wanted, held.__getitem__, text_ids[80:88]))
    assert errors.keys() == measured.keys()
    for choice in (each for each in wanted if each.precision != COARSE):
        anchor = at(parent, choice.layer, choice.role, COARSE)
        found = predicted(OWN, measured[anchor], errors[choice] / errors[anchor])
        assert found.kl == pytest.approx(measured[choice].kl, rel=0.3), choice
        assert found.top1_agreement == pytest.approx(measured[choice].top1_agreement, abs=0.05), choice


def test_the_coarse_one_is_predicted_as_it_was_measured() -> None:
    anchor = Fidelity(kl=0.1, lm_loss=0.02, top1_agreement=0.9, hidden_cosine=0.99)
    assert predicted(OWN, anchor, 1.0) == anchor
    shape = Fidelity(kl=0.5, lm_loss=0.4, top1_agreement=0.7, hidden_cosine=0.8)
    assert predicted(shape, anchor, 0.25).kl == pytest.approx(0.525)


def test_a_precision_that_loses_nothing_says_nothing_of_the_others() -> None:
    """A parent that was stored in q4_0 already."""
    coarse, finer, finest = (Choice.parse(f"L0.ffn=ffn64@{precision}") for precision in (COARSE, "q5_0", "q8_0"))
    assert anchor_of((coarse, finer, finest), {coarse: 0.0, finer: 1e-3, finest: 1e-5}) == finer
    assert anchor_of((coarse, finer), {coarse: 1e-2, finer: 1e-3}) == coarse
    assert anchor_of((coarse, finer), {coarse: 1e-9, finer: 1e-5}) == finer, "a few blocks may round otherwise"
    assert anchor_of((coarse,), {coarse: 0.0}) is None
