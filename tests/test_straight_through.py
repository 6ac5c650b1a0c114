"""A rounded child is trained as it is stored: its numbers are those of the bytes, and their gradient is passed on."""

import subprocess
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from parents import child_of, logits, random_ids, random_parent
from test_precisions import drawn, label
from torch import Tensor

from blocklib.block import Architecture
from blocklib.distil import Progress
from blocklib.errors import NotFiniteError
from blocklib.formats.gguf import stored_types
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent
from blocklib.precisions.formats import FORMATS
from blocklib.precisions.round_model import RoundingText, Stored, round_model
from blocklib.precisions.rounded import Rounded
from blocklib.precisions.rounding import How, round_matrix, unpacked
from blocklib.precisions.straight_through import Cast, KeptScales
from blocklib.precisions.train_rounded import hold, settle
from nas.stages.heal import heal
from nas.stages.heal_settings import Healing

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
# Rows of 112 are no blocks of 32: the matrix that leads out of that FFN is f16.
CHILD = "kv4@q4_0+ffn96@q5_1 kv2@iq4_nl+ffn96@q4_1 kv4@q5_0+ffn80@q8_0 tables@q4_0"
SHORT = Healing(tokens=20 * 4 * 12, batch=4, learning_rate=3e-3, warmup=0.1, hidden_weight=1.0)


@cache
def _made(spelling: str, **sizes: int) -> tuple[Parent, PuzzleNasForCausalLM, Stored]:
    parent, architecture = random_parent(**SIZES | sizes), Architecture.parse(spelling)
    before = child_of(parent, str(architecture.unrounded))
    return parent, *round_model(before, architecture, RoundingText(random_ids(parent, sequences=8), 4))


def small() -> tuple[Parent, PuzzleNasForCausalLM, Stored, Tensor]:
    """A parent, its rounded child in training, the rounded matrices, and text."""
    parent, rounded, stored = _made(CHILD)
    child = deepcopy(rounded)
    hold(child, stored)
    return parent, child, stored, random_ids(parent, sequences=16)


@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-9, 3))
@settings(max_examples=4)
@pytest.mark.parametrize("how", ["plain", "refit"])
@pytest.mark.parametrize("type", FORMATS, ids=label)
def test_training_starts_from_the_stored_bytes(type: Type, how: How, seed: int, exponent: int) -> None:
    """The rounded numbers stay, bit for bit."""
    weight_OI, moments_II = drawn(seed)
    packed_OB = round_matrix(weight_OI * 10.0**exponent, type, moments_II, how)
    start_OI, held = unpacked(packed_OB, type), KeptScales(Rounded.unpacked(FORMATS[type], packed_OB), "gate_proj")
    assert torch.equal(held(start_OI), start_OI)
    assert torch.equal(unpacked(held.packed_OB(start_OI), type), start_OI)


@pytest.mark.parametrize("type", FORMATS, ids=label)
def test_any_numbers_compute_as_their_bytes_read(type: Type) -> None:
    weight_OI, moments_II = drawn(0)
    held = KeptScales(Rounded.unpacked(FORMATS[type], round_matrix(weight_OI, type, moments_II)), "gate_proj")
    other_OI = weight_OI + 0.05 * drawn(1)[0]
    assert torch.equal(held(other_OI), unpacked(held.packed_OB(other_OI), type))
    assert not torch.equal(held(other_OI), held(weight_OI))


@pytest.mark.parametrize("type", [*FORMATS, Type.F16], ids=label)
def test_the_gradient_is_that_of_no_rounding(type: Type) -> None:
    weight_OI, moments_II = drawn(2)
    packed_OB = round_matrix(weight_OI, type, moments_II)
    held = KeptScales(Rounded.unpacked(FORMATS[type], packed_OB), "m") if type in FORMATS else Cast(type, "m")
    weight_OI.requires_grad_(True)
    pull_OI = torch.randn(weight_OI.shape, generator=torch.Generator().manual_seed(0))
    (held(weight_OI) * pull_OI).sum().backward()
    assert torch.equal(weight_OI.grad, pull_OI)


@pytest.mark.parametrize("type", [Type.Q4_0, Type.IQ4_NL, Type.F16], ids=label)
def test_a_bad_weight_is_named_with_its_place(type: Type) -> None:
    weight_OI, moments_II = drawn(3)
    packed_OB = round_matrix(weight_OI, type, moments_II)
    held = (
        KeptScales(Rounded.unpacked(FORMATS[type], packed_OB), "gate_proj")
        if type in FORMATS
        else Cast(type, "gate_proj")
    )
    weight_OI[5, 70] = torch.nan
    with pytest.raises(NotFiniteError, match=r"gate_proj is not finite.* row 5, block 2\b"):
        held(weight_OI)


def test_a_child_in_training_is_the_rounded_child() -> None:
    _, child, stored, ids = small()
    _, rounded, _ = _made(CHILD)
    assert {stored_types(child.config, "f32")[name].name for name in stored} == {
        "Q4_0", "Q5_1", "IQ4_NL", "Q4_1", "Q5_0", "Q8_0", "F16",
    }  # fmt: skip
    assert torch.equal(logits(child, ids), logits(rounded, ids))
    assert settle(child, stored).keys() == stored.keys()
    assert all(torch.equal(tensor, rounded.state_dict()[name]) for name, tensor in child.state_dict().items())


def test_healed_through_rounding_it_is_its_stored_bytes(tmp_path: Path) -> None:
    """And nearer to the parent; embedding and head stay."""
    parent, child, stored, ids = small()
    list(heal(parent.model, child, ids, SHORT, tmp_path))
    in_training = logits(child, ids)
    found = settle(child, stored)
    assert torch.equal(logits(child, ids), in_training)
    types, weights = stored_types(child.config, "f32"), child.state_dict()
    assert all(torch.equal(weights[name], unpacked(tensor, types[name])) for name, tensor in found.items())
    moved = {name for name, tensor in found.items() if not torch.equal(tensor, stored[name])}
    assert moved == {name for name in stored if name.startswith("model.layers.")}
    assert child.state_dict().keys() == _made(CHILD)[1].state_dict().keys()
    target = logits(parent.model, ids)
    assert (in_training - target).square().mean() < 0.9 * (logits(_made(CHILD)[1], ids) - target).square().mean()


def test_k_quants_stay_as_they_were_rounded(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    parent, rounded, stored = _made(
        "kv4@q4_k+ffn256@q4_0 kv4+ffn256", hidden_size=256, intermediate_size=256, num_hidden_layers=2, head_dim=32
    )
    child = deepcopy(rounded)
    hold(child, stored)
    list(heal(parent.model, child, random_ids(parent, sequences=16), SHORT, tmp_path))
    found = settle(child, stored)
    still = {name for name, tensor in found.items() if torch.equal(tensor, stored[name])}
    assert still == {name for name in stored if "self_attn" in name} != set()
    assert all(torch.equal(child.state_dict()[name], rounded.state_dict()[name]) for name in still)


_KILLED = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads({threads})
sys.path.insert(0, {tests!r})
from test_straight_through import SHORT, small
from nas.stages.heal import heal
from nas.stages.heal_settings import HealingRun
parent, child, stored, ids = small()
for event in heal(parent.model, child, ids, SHORT, Path(sys.argv[1]), HealingRun(checkpoint_s=0.0)):
    if event.done_tokens >= 48 * 13:
        os.kill(os.getpid(), 9)
"""


def test_killed_half_way_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    script = _KILLED.format(tests=str(Path(__file__).parent), threads=torch.get_num_threads())
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "killed")], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    parent, child, stored, ids = small()
    left = list(heal(parent.model, child, ids, SHORT, tmp_path / "killed"))
    assert 1 <= len(left) < 20, "it began anew"
    assert left[-1] == Progress(48 * 20, 48 * 20)
    parent, expected, _, ids = small()
    list(heal(parent.model, expected, ids, SHORT, tmp_path / "whole"))
    found, whole = settle(child, stored), settle(expected, stored)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in child.state_dict().items())


def test_nan_is_an_error_with_a_place(tmp_path: Path) -> None:
    parent, child, _, ids = small()
    matrix = child.model.layers[1].mlp.up_proj
    matrix.parametrizations.weight.original.data[3, 40] = torch.nan
    with pytest.raises(
        NotFiniteError, match=r"healing: model\.layers\.1\.mlp\.up_proj\.weight.* row 3, block 1\b.*; lower heal\.lear"
    ):
        list(heal(parent.model, child, ids, SHORT, tmp_path))
