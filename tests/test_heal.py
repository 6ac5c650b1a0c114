"""Healing brings a child nearer to its parent, and one that was killed ends where it would have."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from parents import child_of, first_weights_of, logits, random_ids, random_parent
from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint

from blocklib.assemble import assemble
from blocklib.block import Architecture
from blocklib.distil import Progress
from blocklib.errors import NotFiniteError
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent
from nas.files.home import child_file
from nas.scoring.fidelity import Fidelity
from nas.stages.child import _ChildTask, _make
from nas.stages.child_file import found_with, load_child, save_child
from nas.stages.evaluate import Evaluations, evaluate
from nas.stages.heal import heal, loss_curve
from nas.stages.heal_settings import Healing, HealingRun

CHILD = "skip+ffn48 kv1+ffn16 linear+ffn48 kv4+fuse(ffn48,ffn48) kv2+ffn48"
SHORT = Healing(tokens=20 * 4 * 12, batch=4, learning_rate=1e-3, warmup=0.1, hidden_weight=1.0)


def small() -> tuple[Parent, PuzzleNasForCausalLM, Tensor]:
    """A parent, a child whose weights are its own, and text."""
    parent = random_parent()
    return parent, deepcopy(child_of(parent, CHILD)), random_ids(parent, sequences=16)


def losses(checkpoints: Path) -> list[float]:
    """The trainer's log by its last checkpoint."""
    last = get_last_checkpoint(str(checkpoints))
    assert last is not None
    history = json.loads(Path(last, "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_it_brings_a_child_of_a_trained_parent_nearer(trained_parent: Parent, text_ids: Tensor, tmp_path: Path) -> None:
    shape = trained_parent.shape
    own = f"kv{shape.kv_heads}+ffn{shape.ffn_width}"
    changed = [own, f"linear+ffn{shape.ffn_width // 4}", "skip+skip"]
    architecture = Architecture.parse(" ".join([*changed, *[own] * (shape.layers - 3)]))
    first = first_weights_of(trained_parent, architecture)
    child = deepcopy(assemble(trained_parent, architecture, lambda choice: first.get(choice, {})))
    before = evaluate(trained_parent.model, child, text_ids[136:])
    parent_before = {name: tensor.clone() for name, tensor in trained_parent.model.state_dict().items()}
    settings = Healing(tokens=24 * 8 * 64, batch=8, learning_rate=1e-3, warmup=0.05, hidden_weight=0.5)
    list(heal(trained_parent.model, child, text_ids[:128], settings, tmp_path))
    after = evaluate(trained_parent.model, child, text_ids[136:])
    assert after.kl < 0.8 * before.kl
    assert after.hidden_cosine > before.hidden_cosine
    logged = losses(tmp_path)
    assert sum(logged[-5:]) < 0.8 * sum(logged[:5])
    assert all(torch.equal(tensor, parent_before[name]) for name, tensor in trained_parent.model.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_embedding_and_head_stay_and_the_rest_moves(family: str, tmp_path: Path) -> None:
    parent = random_parent(family)
    child, ids = deepcopy(child_of(parent, CHILD)), random_ids(parent, sequences=16)
    before = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    list(heal(parent.model, child, ids, SHORT, tmp_path))
    still = {name for name, tensor in child.state_dict().items() if torch.equal(tensor, before[name])}
    assert still - {name for name in still if "k_proj.bias" in name} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert not child.training
    assert not any(parameter.requires_grad for parameter in child.parameters())


def test_progress_counts_tokens_to_the_end(tmp_path: Path) -> None:
    parent, child, ids = small()
    events = list(heal(parent.model, child, ids, SHORT, tmp_path))
    assert events == [Progress(48 * (step + 1), 48 * 20) for step in range(20)]


_KILLED = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads({threads})
sys.path.insert(0, {tests!r})
from test_heal import SHORT, small
from nas.stages.heal import heal
from nas.stages.heal_settings import Healing, HealingRun
parent, child, ids = small()
for event in heal(parent.model, child, ids, SHORT, Path(sys.argv[1]), HealingRun(checkpoint_s=float(sys.argv[2]))):
    if event.done_tokens >= 48 * 13:
        os.kill(os.getpid(), 9)
"""


def _killed(folder: Path, settings: str = "SHORT", checkpoint_s: float = 0.0) -> None:
    script = _KILLED.format(tests=str(Path(__file__).parent), threads=torch.get_num_threads())
    script = script.replace("ids, SHORT", f"ids, {settings}")
    command = [sys.executable, "-c", script, str(folder), str(checkpoint_s)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr


def test_killed_half_way_it_ends_where_it_would_have(tmp_path: Path) -> None:
    _killed(tmp_path / "killed")
    parent, child, ids = small()
    left = list(heal(parent.model, child, ids, SHORT, tmp_path / "killed"))
    assert 1 <= len(left) < 20, "it began anew"
    assert left[-1] == Progress(48 * 20, 48 * 20)
    parent, expected, ids = small()
    list(heal(parent.model, expected, ids, SHORT, tmp_path / "whole"))
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(child.state_dict()[name], tensor, rtol=0, atol=0, msg=name)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    curve = loss_curve(tmp_path / "killed", ids, SHORT)
    assert [tokens for tokens, _ in curve] == [48 * (step + 1) for step in range(20)]
    assert [loss for _, loss in curve] == losses(tmp_path / "whole")


def test_no_checkpoint_is_written_before_its_time(tmp_path: Path) -> None:
    _killed(tmp_path, checkpoint_s=600.0)
    assert not list(tmp_path.glob("checkpoint-*"))
    parent, child, ids = small()
    assert len(list(heal(parent.model, child, ids, SHORT, tmp_path, HealingRun(checkpoint_s=600.0)))) == 20
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-20"]


@pytest.mark.parametrize("steps", [20, 6])
def test_done_already_it_does_nothing(steps: int, tmp_path: Path) -> None:
    """Whether it ended with a pass over the text, of four steps, or within one."""
    parent, child, ids = small()
    settings = replace(SHORT, tokens=steps * 48)
    list(heal(parent.model, child, ids, settings, tmp_path))
    _, again, _ = small()
    assert list(heal(parent.model, again, ids, settings, tmp_path)) == []
    assert len(loss_curve(tmp_path, ids, settings)) == steps
    assert all(torch.equal(tensor, child.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_hidden_states_are_compared_at_the_same_places(tmp_path: Path) -> None:
    """A parent of which a fused run is exact: the child is the parent, and nothing is left to lose.

    Compared one block off, hidden states would differ by far: the last assertion.
    """
    parent = random_parent(attention_bias=False, mlp_bias=False)
    layers = parent.model.model.layers
    for layer in (3, 4):
        layers[layer].self_attn.o_proj.weight.data.zero_()
    for layer in (2, 3):
        layers[layer].mlp.down_proj.weight.data.zero_()
    child = deepcopy(child_of(parent, "kv4+ffn48 kv4+ffn48 kv4+fuse(ffn48,ffn48,ffn48) kv4+ffn48"))
    ids = random_ids(parent, sequences=4)
    torch.testing.assert_close(logits(child, ids), logits(parent.model, ids), rtol=1e-4, atol=1e-4)
    settings = Healing(tokens=48, batch=4, learning_rate=1e-9, warmup=0.0, hidden_weight=1.0)
    list(heal(parent.model, child, ids, settings, tmp_path))
    assert losses(tmp_path)[0] < 1e-5
    with torch.no_grad():
        states = parent.model(ids, output_hidden_states=True).hidden_states
    assert torch.cosine_similarity(states[2], states[5], dim=-1).mean() < 0.9


def test_nan_is_an_error_with_a_place(tmp_path: Path) -> None:
    parent, child, ids = small()
    child.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"healing: the loss is nan at step 0; lower heal\.learning_rate"):
        list(heal(parent.model, child, ids, SHORT, tmp_path))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_child_on_disk_is_the_child(family: str, tmp_path: Path) -> None:
    """Tied heads too; and nothing but the file is needed."""
    parent = random_parent(family)
    child, path = child_of(parent, CHILD), child_file(tmp_path, "t1")
    save_child(path, child, {"after": {"kl": 0.25}})
    again = load_child(path)
    ids = random_ids(parent)
    assert again.config.architecture == CHILD
    assert torch.equal(logits(again, ids), logits(child, ids))
    assert found_with(path) == {"after": {"kl": 0.25}}
    assert [file.name for file in path.parent.iterdir()] == ["t1.safetensors"]


def test_a_child_that_was_never_built(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the trial was never built in this home; build it with `nas build`"):
        load_child(child_file(tmp_path, "t1"))


def test_less_text_than_a_batch_is_passed_over_as_often_as_tokens_were_asked_for(tmp_path: Path) -> None:
    parent, child, ids_BT = small()
    wide = Healing(tokens=20 * 4 * 12, batch=32, learning_rate=1e-3, warmup=0.1, hidden_weight=1.0)
    told = list(heal(parent.model, child, ids_BT[:4], wide, tmp_path))
    assert (len(told), told[0].done_tokens) == (20, 4 * 12)
    assert told[-1] == Progress(wide.tokens, wide.tokens)


def test_two_that_want_one_child_make_it_once(tmp_path: Path) -> None:
    """The one that comes later waits, and finds the child made: it would take the other's checkpoints for its own."""
    _, child, _ = small()
    file, checkpoints = tmp_path / "child.safetensors", tmp_path / "checkpoints/c"
    checkpoints.parent.mkdir()
    nothing: Any = None
    task = _ChildTask(
        *5 * [nothing], SHORT, file, checkpoints, "cpu", 1,
        is_through=False, round=nothing, run=HealingRun(), is_healed=False,
    )  # fmt: skip
    found = Evaluations(*(Fidelity(kl, 1.0, 1.0, 1.0) for kl in (0.0, 0.5, 0.25)))
    told: list[str] = []

    def report(done: float = 0, total: float = 0, doing: str = "") -> None:
        told.append(doing)

    with ThreadPoolExecutor() as pool, FileLock(f"{checkpoints}.lock"):
        later = pool.submit(_make, task, report)
        with pytest.raises(TimeoutError):
            later.result(timeout=0.5)
        save_child(file, child, found.plain())
    assert later.result() == found
    assert told == ["waiting for another process that builds the same child"]


@pytest.mark.parametrize("spelling", [CHILD, "kv4+moe4x12k2 kv2+fff2x12 kv4+ffn48 skip+ffn48 kv4+topk16 kv4+ffn48"])
def test_activations_computed_again_change_no_bit(spelling: str, tmp_path: Path) -> None:
    parent = random_parent()
    ids = random_ids(parent, sequences=16)
    kept, again = (deepcopy(child_of(parent, spelling)) for _ in range(2))
    list(heal(parent.model, kept, ids, SHORT, tmp_path / "kept"))
    with counted_forwards(again) as forwards:
        list(heal(parent.model, again, ids, SHORT, tmp_path / "again", HealingRun(recompute=True)))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in kept.state_dict().items())
    assert losses(tmp_path / "kept") == losses(tmp_path / "again")
    # A step runs a layer twice, but where the loss reads a regulariser of it.
    regular = [any(hasattr(part, "regulariser") for part in layer.modules()) for layer in again.model.layers]
    assert forwards == [20 if is_regular else 40 for is_regular in regular]
    assert not any(layer.gradient_checkpointing for layer in again.model.layers)


@contextmanager
def counted_forwards(model: PuzzleNasForCausalLM) -> Iterator[list[int]]:
    """How often each layer's first part ran. A hook of the layer itself stays outside of what is computed again."""
    counts = [0] * len(model.model.layers)

    def note(place: int) -> None:
        counts[place] += 1

    parts: list[Any] = [next(iter(layer.children())) for layer in model.model.layers]
    hooks = [part.register_forward_hook(lambda *_, at=place: note(at)) for place, part in enumerate(parts)]
    yield counts
    for hook in hooks:
        hook.remove()


def test_adapters_alone_are_trained_and_merged(tmp_path: Path) -> None:
    parent, child, ids = small()
    before = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    list(heal(parent.model, child, ids, replace(SHORT, lora_rank=2), tmp_path))
    after = child.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        change = tensor - before[name]
        if tensor.ndim < 2 or "layers" not in name:
            assert not change.any(), name
        elif min(tensor.shape) > 2:
            assert torch.linalg.matrix_rank(change.double(), rtol=1e-5) <= 2, name
    assert any((after[name] - before[name]).any() for name in after)
    assert not any(parameter.requires_grad for parameter in child.parameters())


def test_adapters_that_were_killed_half_way_end_where_they_would_have(tmp_path: Path) -> None:
    settings = replace(SHORT, lora_rank=2)
    parent, whole, ids = small()
    list(heal(parent.model, whole, ids, settings, tmp_path / "whole"))
    _killed(tmp_path / "killed", "Healing(**vars(SHORT) | {'lora_rank': 2})")
    resumed = deepcopy(child_of(parent, CHILD))
    left = list(heal(parent.model, resumed, ids, settings, tmp_path / "killed"))
    assert 1 <= len(left) < 20, "it began anew"
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_a_trees_frozen_nodes_get_no_adapter_either(tmp_path: Path) -> None:
    parent = random_parent()
    child = deepcopy(child_of(parent, "kv4+fff2x12 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48"))
    before = {name: tensor.clone() for name, tensor in child.state_dict().items() if "node_" in name}
    list(heal(parent.model, child, random_ids(parent, sequences=16), replace(SHORT, lora_rank=1), tmp_path))
    assert before
    assert all(torch.equal(tensor, child.state_dict()[name]) for name, tensor in before.items())
