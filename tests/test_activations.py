"""The parent's activations: cached in files they are what the parent computes, and the parent computes each once."""

import gc
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from parents import FAMILIES, random_ids, random_parent
from torch import Tensor, nn

from blocklib.activations import CachedActivations, ComputedActivations, cache, cached, cached_numbers
from blocklib.block import Choice
from blocklib.distil import Distilled, Texts, Training, distil
from blocklib.errors import ActivationsError
from blocklib.kind import Weights
from blocklib.parent import Parent
from nas.files.process_folder import ProcessFolder, process_folder
from nas.scoring.replace_one import score
from nas.stages.activations import TextActivations

BATCH = 2


def run_over(parent: Parent, ids_BT: Tensor, folder: Path, *shares: range) -> CachedActivations:
    for batches in shares:
        list(cache(parent.model, ids_BT, folder, BATCH, batches))
    return CachedActivations.of(parent.model, ids_BT, folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_ones_are_those_that_the_parent_computes(family: str, dtype: torch.dtype) -> None:
    parent = random_parent(family, dtype=dtype)
    ids = random_ids(parent, sequences=5)
    held, computed = cached(parent.model, ids, BATCH), ComputedActivations(parent.model, ids)
    end = 2 * parent.shape.layers
    for rows in torch.arange(5).split(BATCH):
        with torch.no_grad():
            for first in range(end):
                pairs = list(zip(held.over(rows, end, first), computed.over(rows, end, first), strict=True))
                assert [here.slot for here, _ in pairs] == list(range(first, end))
                for here, there in pairs:
                    assert torch.equal(here.entering_BTD, there.entering_BTD), here.slot
                    assert torch.equal(here.delta_BTD, there.delta_BTD), here.slot


def test_sequences_come_in_the_order_asked_for() -> None:
    parent = random_parent()
    held = cached(parent.model, random_ids(parent, sequences=5), BATCH)
    (whole,) = held.over(torch.arange(5), 3, 2)
    (some,) = held.over(torch.tensor([4, 0, 3]), 3, 2)
    assert torch.equal(some.entering_BTD, whole.entering_BTD[[4, 0, 3]])
    assert torch.equal(some.delta_BTD, whole.delta_BTD[[4, 0, 3]])


def test_several_processes_write_one_text(tmp_path: Path) -> None:
    parent = random_parent()
    ids = random_ids(parent, sequences=5)
    run_over(parent, ids, tmp_path / "one", range(3))
    run_over(parent, ids, tmp_path / "two", range(2, 3), range(2))
    names = [file.name for file in (tmp_path / "one").iterdir()]
    assert {name: (tmp_path / "one" / name).read_bytes() for name in names} == {
        file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()
    }
    held = sum((tmp_path / "one" / name).stat().st_size for name in names if "channels" not in name)
    assert held == 4 * cached_numbers(parent.shape.layers, parent.shape.hidden, ids.numel())


def test_what_is_gone_or_cut_is_said(tmp_path: Path) -> None:
    parent = random_parent()
    held = run_over(parent, random_ids(parent, sequences=5), tmp_path, range(2))
    next(held.over(torch.arange(4), 1))
    with pytest.raises(ActivationsError, match=r"0\.residual ends within sequence 4; run the same command again"):
        next(held.over(torch.tensor([4]), 1))
    (tmp_path / "0.residual").unlink()
    with pytest.raises(ActivationsError, match=r"0\.residual is gone; run the same command again"):
        next(held.over(torch.arange(4), 1))


def test_a_text_too_long_for_the_disk_is_computed_on_and_its_head_read(tmp_path: Path) -> None:
    parent = random_parent()
    ids = random_ids(parent, sequences=5)
    list(cache(parent.model, ids, tmp_path, BATCH, range(1)))
    held = TextActivations(tmp_path, sequences=2)
    array = ids.int().numpy()
    assert isinstance(held.of(parent, array[:2]), CachedActivations)
    whole, rows = held.of_all(parent, array), torch.tensor([3, 1])
    with torch.no_grad():
        (found,) = whole.over(rows, 4, 3)
        (expected,) = ComputedActivations(parent.model, ids).over(rows, 4, 3)
    assert torch.equal(found.entering_BTD, expected.entering_BTD)


class Passes:
    """Counts how often each subblock of a parent is given each input, a sequence at a time."""

    def __init__(self, parent: Parent):
        self.seen: Counter[tuple[str, bytes]] = Counter()
        for name, module in parent.model.model.layers.named_modules():
            if name.endswith((".self_attn", ".mlp")):
                module.register_forward_pre_hook(self._noted(name))

    def _noted(self, name: str):  # type: ignore[no-untyped-def]
        def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.seen.update((name, row.numpy().tobytes()) for row in inputs[0].detach())

        return note


def test_each_layer_runs_once_on_each_sequence_whoever_needs_it() -> None:
    """First weights, least squares, training in several passes over the text, losses before and after, usage, and the
    scores of all of it: of the parent's own activations none is computed a second time."""
    parent = random_parent()
    training_BT, heldout_BT = random_ids(parent, 8, 16), random_ids(parent, 4, 16, seed=2)
    passes = Passes(parent)
    texts = [cached(parent.model, ids, 4) for ids in (training_BT, heldout_BT)]
    own = set(passes.seen)
    assert set(passes.seen.values()) == {1}
    assert len(own) == 2 * parent.shape.layers * (len(training_BT) + len(heldout_BT))

    names = ("L1.attention=kv1", "L2.attention=linear", "L0.ffn=ffn16", "L1.ffn=fuse(ffn48,ffn48)", "L3.ffn=moe4x8k2")
    trainings = {Choice.parse(name): Training(3 * training_BT.numel(), 1e-3) for name in names}
    built: dict[Choice, Weights] = {}
    for head, group in ((4, list(trainings)[:3]), (8, list(trainings)[3:])):  # two tasks
        calibration = CachedActivations.of(parent.model, training_BT[:head], texts[0].folder)
        given = Texts(calibration, *texts, batch=4)
        for event in distil(parent, {choice: trainings[choice] for choice in group}, given):
            if isinstance(event, Distilled):
                assert event.loss_trained is not None
                built[event.choice] = event.weights
    for group in (names[:2], names[2:]):
        *_, found = score(parent, {Choice.parse(name): built[Choice.parse(name)] for name in group}, texts[1])
        assert isinstance(found, dict)
    assert {passes.seen[each] for each in own} == {1}
    assert passes.seen.keys() - own, "variants run through the parent's layers"


def test_a_folder_of_a_process_goes_with_its_value(tmp_path: Path) -> None:
    folder = ProcessFolder(tmp_path, "activations")
    assert list(tmp_path.iterdir()) == []
    (folder.path / "0.added").write_text("numbers")
    assert folder.path.parent == tmp_path
    del folder
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_a_killed_process_is_removed_and_those_at_work_are_not(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", "pass"])
    killed.wait()
    mine = process_folder(tmp_path, "child")
    begin = mine.name.partition(f"{os.getpid()}-")[0]
    left, at_work = (tmp_path / f"{begin}{process}-abc.partial" for process in (killed.pid, os.getppid()))
    others = [tmp_path / ".child.elsewhere-1-abc.partial", tmp_path / f"{begin}notes.partial", at_work]
    for each in (left, *others):
        each.mkdir()
        (each / "model.safetensors").write_text("half")
    another = process_folder(tmp_path, "child")
    assert sorted(tmp_path.iterdir()) == sorted([*others, mine, another])
