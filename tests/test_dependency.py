"""Block dependency: the matrix against deleting blocks by hand, the command, and the section of the report."""

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rows
import torch
from numpy.typing import NDArray
from parents import FAMILIES, child_of, parent_from, random_ids, random_model, random_parent
from searches import Here, parent_folder
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import nas.scoring.block_dependency
from blocklib.block import Architecture
from blocklib.errors import NotFiniteError
from blocklib.parent import Parent, load_parent
from db.store import Store
from nas.job import config
from nas.job.fusion_candidates import Joining, LayerRun, ffn_runs, windows
from nas.report import write_report
from nas.report.dependency import dependency_map
from nas.scoring.block_dependency import block_dependency, cosine_distance, dependency_of

Array = NDArray[np.float64]

# --- the matrix -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def contributions(model: PreTrainedModel, layers: nn.ModuleList, ids_BT: Tensor) -> list[Array]:
    """The contribution of each layer to its input, seen from outside: [B, T, D] each."""
    seen: list[Array] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
        left = output[0] if isinstance(output, tuple) else output
        seen.append((left - given[0]).double().numpy())

    handles = [layer.register_forward_hook(keep) for layer in layers]
    model(ids_BT, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def distance(one: Array, other: Array) -> float:
    """The mean cosine distance of [..., D]."""
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return float((1 - (one * other).sum(-1) / lengths).mean())


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    body: Any = model
    found: nn.ModuleList = body.transformer.h if hasattr(body, "transformer") else body.model.layers
    return found


def by_deleting(model: PreTrainedModel, ids_BT: Tensor) -> Array:
    """The matrix the slow way, in transformers' own class: take the block out of the list, run all that is left."""
    whole = contributions(model, layers_of(model), ids_BT)
    found = np.zeros((len(whole), len(whole)))
    for i in range(len(whole)):
        shorter = deepcopy(model)
        del layers_of(shorter)[i]
        without = contributions(shorter, layers_of(shorter), ids_BT)
        for j in range(i + 1, len(whole)):
            found[i, j] = distance(whole[j], without[j - 1])
    return found


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_it_is_what_deleting_blocks_by_hand_gives(family: str) -> None:
    model = random_model(FAMILIES[family]())
    parent = parent_from(model)
    ids = random_ids(parent, sequences=3, tokens=11)
    found = np.array(block_dependency(parent.model, ids))
    np.testing.assert_allclose(found, by_deleting(model, ids), rtol=0, atol=2e-6)
    assert (found[np.tril_indices(6)] == 0).all()
    assert (found[np.triu_indices(6, 1)] > 1e-3).all()


def test_it_is_what_deleting_blocks_of_a_trained_parent_gives(text_ids: Tensor) -> None:
    source, ids = str(parent_folder()), text_ids[:4]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    found = np.array(block_dependency(load_parent(source).model, ids))
    np.testing.assert_allclose(found, by_deleting(model, ids), rtol=0, atol=2e-6)


def test_it_is_that_of_a_child_too() -> None:
    """Attentions gone, FFNs fused, blocks in parallel: these are one block together."""
    parent = random_parent()
    ids = random_ids(parent)
    entries = ["skip+ffn48", "kv4+ffn48|kv2+ffn16", "linear+fuse(ffn48,ffn48)", "kv4+skip"]
    gone = ["skip+skip", "skip+skip skip+skip", "skip+skip skip+skip", "skip+skip"]
    spans = [slice(0, 1), slice(1, 3), slice(3, 4), slice(4, 5)]

    def added(spelled: Sequence[str], spans: Sequence[slice]) -> list[Array]:
        child = child_of(parent, " ".join(spelled))
        each = contributions(child, child.model.layers, ids)
        return [np.sum(each[span], axis=0) for span in spans]

    whole = added(entries, spans)
    expected = np.zeros((4, 4))
    for i in range(4):
        shorter = [*entries[:i], gone[i], *entries[i + 1 :]]
        # A run that is left out is two layers that do nothing, where it was one.
        shifted = [slice(s.start + 1, s.stop + 1) if i == 2 and s.start > 3 else s for s in spans]
        without = added(shorter, shifted)
        for j in range(i + 1, 4):
            expected[i, j] = distance(whole[j], without[j])
    found = block_dependency(child_of(parent, " ".join(entries)), ids)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("numbers", [1, 12 * 32 * 3, 2 * 12 * 32 * 8])
def test_memory_bounds_change_nothing(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    """One variant at a time, some of them, all of them; sequence by sequence, or several at once."""
    parent = random_parent(dtype=torch.float64)
    ids = random_ids(parent, sequences=3, tokens=12)
    whole = block_dependency(parent.model, ids)
    monkeypatch.setattr(nas.scoring.block_dependency, "_STACK_AT_ONCE", numbers)
    monkeypatch.setattr(nas.scoring.block_dependency, "numbers_at_once", lambda device: numbers)
    np.testing.assert_allclose(block_dependency(parent.model, ids), whole, rtol=0, atol=1e-12)


def disconnected(reads_too: tuple[int, int] | None = None) -> Parent:
    """Four blocks, each of which reads and writes eight coordinates of its own, its attention adding nothing.

    The output of another block reaches it only through the RMS norm's denominator, which scales its input; with a
    ReLU gate that scales what it adds, and no cosine changes. `reads_too` (i, j): block j reads block i's as well.
    """
    sizes = {"num_hidden_layers": 4, "hidden_act": "relu", "attention_bias": False, "mlp_bias": False}
    model = random_model(FAMILIES["llama"](**sizes))
    for index, layer in enumerate(model.model.layers):
        own = torch.zeros(32)
        own[8 * index : 8 * index + 8] = 1
        read = own.clone()
        if reads_too and reads_too[1] == index:
            read[8 * reads_too[0] : 8 * reads_too[0] + 8] = 1
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.gate_proj.weight.data *= read
        layer.mlp.up_proj.weight.data *= read
        layer.mlp.down_proj.weight.data *= own[:, None]
    nn.Module.to(model, torch.float64)
    return parent_from(model)


def test_blocks_that_read_nothing_of_each_other_do_not_depend_on_each_other() -> None:
    parent = disconnected()
    assert np.max(block_dependency(parent.model, random_ids(parent))) < 1e-12


def test_the_one_block_that_reads_another_is_found() -> None:
    """The first is read: whatever came before one that is read would scale what that one writes."""
    parent = disconnected(reads_too=(0, 2))
    found = np.array(block_dependency(parent.model, random_ids(parent)))
    assert found[0, 2] > 0.01
    found[0, 2] = 0
    assert found.max() < 1e-12


def test_a_block_that_adds_nothing_depends_on_none_and_none_on_it() -> None:
    model = random_model(FAMILIES["mistral"]())
    for projection in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
        projection.weight.data.zero_()
    parent = parent_from(model)
    found = np.array(block_dependency(parent.model, random_ids(parent)))
    assert (found[:, 2] == 0).all()
    assert found[2].max() < 1e-6
    assert found[1, 3:].min() > 1e-3


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [((0, 0), (0, 0), 0), ((0, 0), (3, 4), 1), ((3, 4), (0, 0), 1), ((3, 4), (6, 8), 0), ((3, 4), (-3, -4), 2),
     ((1, 0), (0, 1e-15), 1), ((3e-15, 4e-15), (3, 4), 0), ((1, 0), (1, 1), 1 - 0.5**0.5)],
)  # fmt: skip
def test_the_distance_of_two_vectors(one: tuple[float, ...], other: tuple[float, ...], apart: float) -> None:
    assert float(cosine_distance(torch.tensor(one), torch.tensor(other))) == pytest.approx(apart, abs=1e-6)


def test_half_precision_is_measured_in_single() -> None:
    one = torch.randn(5, 4096, generator=torch.Generator().manual_seed(0))
    found = cosine_distance(one.bfloat16(), one.bfloat16() * 2)
    assert found.dtype == torch.float32
    assert found.max() < 1e-6


def test_what_is_not_finite_is_told_with_its_place() -> None:
    model = random_model(FAMILIES["llama"]())
    model.model.layers[3].mlp.down_proj.weight.data[2, 5] = float("inf")
    parent = parent_from(model)
    with pytest.raises(NotFiniteError, match=r"block 3: its dependency on block 0 is NaN or infinite"):
        block_dependency(parent.model, random_ids(parent))


def test_one_block_depends_on_none() -> None:
    parent = random_parent(num_hidden_layers=1)
    assert block_dependency(parent.model, random_ids(parent)) == [[0.0]]


# --- the command ------------------------------------------------------------------------------------------------------

TEXT = ["--data", str(Path(json.__file__).parents[1] / "asyncio/*.py"), "--tokens", "1024"]


def test_the_command_prints_the_matrix_and_what_it_offers(here: Here, tmp_path: Path) -> None:
    parent, page = str(parent_folder()), tmp_path / "made" / "page.html"
    done = here(tmp_path, "dependency", parent, *TEXT, "--longest", "2", "--html", page)
    assert done.returncode == 0, done.stderr
    told = dependency_of(parent, [TEXT[1]], 1024, Joining(longest=2))
    lines = done.stdout.splitlines()
    for i, row in enumerate(told.matrix):
        (line,) = [line for line in lines if re.match(rf" +{i} ( |$)", line) and not line.startswith("       0")]
        assert line.split() == [str(i), *(f"{value:.2f}" for value in row[i + 1 :])]
    runs = ", ".join(f"{run} ({run.most:.2f})" for run in told.runs)
    assert f"FFNs to fuse: {runs or 'none'}" in lines
    assert re.search(r"Blocks to run in parallel: \d+-\d+ \(\d\.\d\d\)", done.stdout)
    html = page.read_text()
    for i, j in combinations(range(len(told.matrix)), 2):
        assert f"block {j} without block {i}: {told.matrix[i][j]!r}" in html
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link", html)


def test_the_command_prints_json(here: Here, tmp_path: Path) -> None:
    parent = str(parent_folder())
    done = here(tmp_path, "dependency", parent, *TEXT, "--json", "--share", "1", "--window", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    layers = len(found["matrix"])
    assert (found["parent"], found["tokens"]) == (parent, 1024)
    assert all(found["matrix"][i][j] == 0 for i in range(layers) for j in range(i + 1))
    assert [LayerRun(**run) for run in found["runs"]] == list(ffn_runs(found["matrix"], share=1.0))
    assert [LayerRun(**run) for run in found["windows"]] == list(windows(found["matrix"], 2))
    assert len(found["windows"]) == layers // 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}/nope"], r"there is no .*/nope"),
        (["{}"], r"holds no config\.json"),
        (["embedded", "--data", "{}/nope.txt"], r"nope\.txt does not exist"),
        (["embedded", *TEXT[:2], "--tokens", "100000000"], r"100,000,512 are asked for.*give more text"),
    ],
)
def test_the_command_says_what_is_wrong(here: Here, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = here(tmp_path / "home", "dependency", *(part.format(tmp_path) for part in arguments))
    assert done.returncode == 1
    assert re.fullmatch(rf"error: .*{said}.*\n", done.stderr), done.stderr


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_map_marks_what_the_child_joins() -> None:
    matrix = [[0.0, 0.8, 0.4, 0.2], [0.0, 0.0, 0.1, 0.2], [0.0, 0.0, 0.0, 0.4], [0.0] * 4]
    child = Architecture.parse("kv4+fuse(ffn64,ffn64) kv4+ffn64|kv4+ffn64")
    found = dependency_map(matrix, child)
    assert found is not None
    cells = [[None if cell is None else (cell.text, cell.heat, cell.is_joined) for cell in row] for row in found.rows]
    assert cells == [
        [None, ("0.80", 1.0, True), ("0.40", 0.5, False), ("0.20", 0.25, False)],
        [None, None, ("0.10", 0.125, False), ("0.20", 0.25, False)],
        [None, None, None, ("0.40", 0.5, True)],
        [None, None, None, None],
    ]
    assert found.most == "0.80"
    alone = dependency_map(matrix)
    assert alone is not None
    assert not any(cell.is_joined for row in alone.rows for cell in row if cell)
    assert dependency_map([[0.0] * 3] * 3) is not None, "no dependency at all is no division by zero"
    assert dependency_map(None) is None


def test_the_report_shows_the_matrix_where_there_is_one(tmp_path: Path) -> None:
    request = config.parse("parent: embedded\ndata: {train: stdlib}\nbudget: {latency: 60%}", "job.yaml").canonical()
    scenario = dict(device="cpu", dtype="float32", batch=16, prompt_tokens=256, generated_tokens=1, threads=2)
    store = Store.open(tmp_path / "nas.db")
    search = store.add_search(
        rows.search(parent_architecture="kv4+ffn64 kv4+ffn64", request=request, scenario=scenario)
    )
    assert "Block dependency" not in write_report(store, search, tmp_path / "without.html").read_text()
    search.dependency = [[0.0, 0.37125], [0.0, 0.0]]
    page = write_report(store, search, tmp_path / "with.html").read_text()
    assert page.count('<section id="dependency">') == 1
    assert 'title="block 1 without block 0: 0.37125">0.37</td>' in page
