"""A device that cannot hold a parent holds its embedding and head; the layers stay in their files."""

from pathlib import Path

import pytest
import torch
from parents import FAMILIES, random_ids, random_model

from blocklib.parent import load_parent
from blocklib.resident import is_held_whole, share_of
from blocklib.stream import slots

ELSEWHERE = "meta"  # A device that computes shapes, and refuses what lies on two devices.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_layers_go_to_the_device_where_they_run(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    random_model(FAMILIES[family]()).to(dtype).save_pretrained(tmp_path)
    parent = load_parent(str(tmp_path))
    there = parent.on(ELSEWHERE, whole=False)
    placed = {name: tensor.device.type for name, tensor in there.weights.items()}
    assert {device for name, device in placed.items() if "layers" in name} == {"cpu"}
    assert {device for name, device in placed.items() if "layers" not in name} == {ELSEWHERE}
    ids = random_ids(parent).to(ELSEWHERE)
    logits = there.model(ids).logits
    assert (logits.device.type, logits.dtype) == (ELSEWHERE, torch.float32)
    assert {each.delta_BTD.device.type for each in slots(there.model, ids, 2 * parent.shape.layers)} == {ELSEWHERE}
    # Tensors that are built from them are where the work is done.
    assert {tensor.device.type for tensor in there.layer_weights(0).values()} == {ELSEWHERE}


def test_a_device_that_holds_all_of_a_parent_has_it(tmp_path: Path) -> None:
    random_model(FAMILIES["llama"]()).save_pretrained(tmp_path)
    there = load_parent(str(tmp_path)).on(ELSEWHERE)
    assert {tensor.device.type for tensor in there.weights.values()} == {ELSEWHERE}
    there.model(torch.zeros(1, 4, dtype=torch.long, device=ELSEWHERE))


def test_main_memory_maps_a_parent_of_any_size() -> None:
    assert is_held_whole(1 << 60, torch.device("cpu"))
    assert share_of(80e9) < 80e9
