"""A layer trained through its rounding: the child is nearer to the unrounded one, in bytes on the same scales."""

from functools import cache
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from parents import child_of, logits, random_ids, random_parent
from torch import Tensor

from blocklib.block import Architecture
from blocklib.errors import NotFiniteError, SettingError
from blocklib.formats.gguf import stored_types
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent
from blocklib.precisions.formats import FORMATS
from blocklib.precisions.layer_checkpoints import LayerCheckpoints
from blocklib.precisions.round_model import RoundingText, Stored, round_model
from blocklib.precisions.rounded import Rounded
from blocklib.precisions.rounding import unpacked
from blocklib.precisions.train_layer import LayerTraining

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
# Rows of 80 are no blocks of 32: the matrix that leads out of that FFN is f16. The third block is dropped, and the
# last has no precision.
CHILD = "kv4@q4_0+ffn96@q4_1 kv2@iq4_nl+ffn80@q5_0 skip+skip kv4+ffn96"
RATE = 3e-3


@cache
def unrounded(**sizes: int) -> tuple[Parent, PuzzleNasForCausalLM, Tensor]:
    parent = random_parent(**SIZES | sizes)
    child = parent.model if sizes else child_of(parent, str(Architecture.parse(CHILD).unrounded))
    return parent, child, random_ids(parent, sequences=560, tokens=16)


@cache
def rounded(rate: float | None, batch: int = 8) -> tuple[PuzzleNasForCausalLM, Stored]:
    """The child rounded, its layers trained at that rate; None: not trained."""
    _, child, ids_BT = unrounded()
    training = None if rate is None else LayerTraining(ids_BT[16:528], batch, rate)
    return round_model(child, Architecture.parse(CHILD), RoundingText(ids_BT[:16], 4, training))


def far(model: PuzzleNasForCausalLM) -> float:
    """From the unrounded child, on text of its own."""
    _, child, ids_BT = unrounded()
    return float((logits(model, ids_BT[528:]) - logits(child, ids_BT[528:])).square().mean())


def test_the_child_is_nearer_to_the_unrounded_one() -> None:
    (before, _), (after, _) = rounded(None), rounded(RATE)
    assert far(after) < 0.85 * far(before)


def test_the_child_computes_what_its_bytes_say_on_the_scales_of_rounding() -> None:
    (before, first), (after, stored) = rounded(None), rounded(RATE)
    types, weights = stored_types(after.config, "f32"), after.state_dict()
    assert stored.keys() == first.keys()
    for name, packed_OB in stored.items():
        assert torch.equal(weights[name], unpacked(packed_OB, types[name])), name
        # The other layers are rounded on other streams.
        if types[name] in FORMATS and name.startswith("model.layers.0."):
            parts = [Rounded.unpacked(FORMATS[types[name]], one[name]) for one in (stored, first)]
            assert torch.equal(parts[0].scales_NO, parts[1].scales_NO), name
    of_layers = {name for name in stored if name.startswith("model.layers.")}
    assert {types[name] for name in of_layers} == {Type.Q4_0, Type.Q4_1, Type.IQ4_NL, Type.Q5_0, Type.F16}
    assert any(not torch.equal(stored[name], first[name]) for name in of_layers)
    trained = ("model.layers.0.", "model.layers.1.")
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.state_dict().items()
               if not name.startswith(trained))  # fmt: skip


def test_training_that_makes_a_layer_worse_is_undone() -> None:
    (before, first), (after, stored) = rounded(None), rounded(30.0)
    assert all(torch.equal(tensor, first[name]) for name, tensor in stored.items())
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in after.state_dict().items())


def test_the_unrounded_child_is_not_changed_and_the_result_is_the_same_again() -> None:
    _, child, ids_BT = unrounded()
    state = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    text = RoundingText(ids_BT[:16], 4, LayerTraining(ids_BT[16:528], 8, RATE))
    model, again = round_model(child, Architecture.parse(CHILD), text)
    assert all(torch.equal(tensor, state[name]) for name, tensor in child.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, rounded(RATE)[1][name]) for name, tensor in again.items())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in rounded(RATE)[0].state_dict().items())


def test_k_quants_stay_as_they_were_rounded() -> None:
    pytest.importorskip("xllamacpp")
    _, child, ids_BT = unrounded(hidden_size=256, intermediate_size=256, num_hidden_layers=1, head_dim=32)
    architecture = Architecture.parse("kv4@q4_k+ffn256@q4_0")
    training = LayerTraining(ids_BT[16:528], 8, RATE)
    _, first = round_model(child, architecture, RoundingText(ids_BT[:16], 4))
    _, stored = round_model(child, architecture, RoundingText(ids_BT[:16], 4, training))
    still = {name for name, tensor in stored.items() if torch.equal(tensor, first[name])}
    assert still == {name for name in stored if "self_attn" in name} != set()


def test_a_rate_that_leaves_no_numbers_is_an_error_with_a_place() -> None:
    with pytest.raises(
        NotFiniteError,
        match=r"layer 0 of the child: .* self_attn\.\w_proj\.weight is not finite.* row 0, block 0.*; lower rou",
    ):
        rounded(1e38)


def test_one_batch_cannot_be_both_trained_on_and_held_out() -> None:
    _, _, ids_BT = unrounded()
    with pytest.raises(SettingError, match="3 sequences are too few to train layers on, 4 at a time"):
        LayerTraining(ids_BT[:3], 4, RATE)


def test_a_run_that_was_killed_goes_on_behind_the_layers_that_are_done(tmp_path: Path) -> None:
    """And ends with the same."""
    _, child, ids_BT = unrounded()
    text = RoundingText(ids_BT[:16], 4, LayerTraining(ids_BT[16:528], 8, RATE))
    checkpoints = LayerCheckpoints(tmp_path / "rounded")

    def killed(done: int, _: int) -> None:
        if done == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        round_model(child, Architecture.parse(CHILD), text, heard=killed, checkpoints=checkpoints)
    files = {path: path.stat().st_mtime_ns for path in checkpoints.folder.iterdir()}
    assert len(files) == 1
    found, stored = round_model(child, Architecture.parse(CHILD), text, checkpoints=checkpoints)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(list(checkpoints.folder.iterdir())) == 2, "the others have no precision"
    expected, first = rounded(RATE)
    assert all(torch.equal(tensor, first[name]) for name, tensor in stored.items())
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in found.state_dict().items())
