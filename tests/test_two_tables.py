"""Embedding and head as two matrices, each in a precision of its own: scored, costed, written, run by llama.cpp."""

import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from conftest import EMBEDDED
from searches import Here, job, nas, rows, the_error
from test_precision_search import BITS_ONLY, HOW
from test_rounded_parts import own_weights
from torch import Tensor
from transformers import AutoModelForCausalLM

from blocklib.activations import ComputedActivations
from blocklib.assemble import assemble
from blocklib.block import Architecture, Choice
from blocklib.formats.gguf import (
    as_stored,
    gguf_bytes,
    gguf_embedding_bytes,
    gguf_head_bytes,
    write_gguf,
    write_random_gguf,
)  # fmt: skip
from blocklib.formats.gguf_vocabulary import dummy_vocabulary
from blocklib.parent import Parent, load_parent
from blocklib.precisions.parts import as_floats
from blocklib.precisions.round_library import round_parts
from blocklib.precisions.round_model import RoundingText, round_model
from blocklib.tables import EMBEDDING, HEAD
from cost_models.analytic import choice_cost, fixed_cost
from cost_models.geometry import geometries
from cost_models.scenario import Scenario
from db.store import Store
from nas.export.verify_gguf import compare_closely
from nas.scoring.architectures import score_whole
from nas.scoring.replace_one import score
from nas.stages.child_file import load_child, stored_in_child
from nas.stages.cost_table import table_of
from nas.stages.evaluate import evaluate

pytest.importorskip("xllamacpp")
SCENARIO = Scenario("cpu", "q8_0", 1, 16, 4, 1, "llama_cpp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded parent with a head of its own, not quite its embedding."""
    out = tmp_path_factory.mktemp("untied") / "parent"
    shutil.copytree(EMBEDDED, out)
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    table = model.get_input_embeddings().weight.detach()
    noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(table + 0.05 * table.std() * noise)
    model.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def parent(folder: Path) -> Parent:
    found = load_parent(str(folder))
    assert not found.shape.tied
    return found


def stored_as(parent: Parent, embedding: str, head: str) -> Architecture:
    """The parent's shapes in q8_0."""
    block = parent.architecture.blocks[0]
    stored = "+".join(f"{part}@q8_0" for part in str(block).split("+"))
    return Architecture.parse(" ".join([stored] * parent.shape.layers) + f" embedding@{embedding} head@{head}")


# Two matrices of the parent


def test_the_score_of_each_is_the_distance_of_the_parent_with_it(parent: Parent, text_ids: Tensor) -> None:
    layers, ids_BT = parent.shape.layers, text_ids[80:88]
    parts = [Choice.parse(f"L{layers}.{role}={role}@q4_0") for role in ("embedding", "head")]
    rounded = dict(round_parts(parent, parts, lambda part: own_weights(parent, part), text_ids[:8], batch=4))
    assert [set(rounded[part]) for part in parts] == [{EMBEDDING}, {HEAD}]
    held = {part: as_floats(part, rounded[part], parent.shape) for part in parts}
    *_, found = score(parent, held, ComputedActivations(parent.model, ids_BT))
    assert isinstance(found, dict)
    for part, other in zip(parts, parts[::-1], strict=True):
        spelled = {part.role: "q4_0", other.role: "f32"}
        blocks = str(parent.architecture)
        changed = Architecture.parse(f"{blocks} embedding@{spelled['embedding']} head@{spelled['head']}")
        child = assemble(parent, changed, lambda asked: held[asked] if asked in held else own_weights(parent, asked))
        real = evaluate(parent.model, child, ids_BT).kl
        assert found[part].kl == pytest.approx(real, rel=1e-3) != 0
        *_, whole = score_whole(
            parent, [changed, parent.architecture], lambda asked: held.get(asked) or own_weights(parent, asked), ids_BT
        )
        assert isinstance(whole, dict)
        assert whole[changed].kl == pytest.approx(real, rel=1e-3)
    assert found[parts[0]].kl != pytest.approx(found[parts[1]].kl, rel=0.01)


@pytest.mark.parametrize(("embedding", "head"), [("q4_0", "q8_0"), ("q8_0", "q5_1"), ("q5_0", "q5_0")])
def test_the_file_holds_each_in_its_type_and_llama_cpp_runs_it(
    embedding: str, head: str, parent: Parent, text_ids: Tensor, tmp_path: Path
) -> None:
    architecture, shape = stored_as(parent, embedding, head), parent.shape
    child, stored = round_model(parent.whole(), architecture, RoundingText(text_ids[:8], 4))
    vocabulary = dummy_vocabulary(shape.vocabulary)
    model = write_gguf(tmp_path / "child.gguf", child, "f16", vocabulary, stored=stored)
    assert model.precisions == {"q8_0", embedding, head}
    file = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "child.gguf").tensors}
    types = tuple(file[name].tensor_type.name.lower() for name in ("token_embd.weight", "output.weight"))
    assert types == (embedding, head)
    costs = [choice_cost(choice, shape, SCENARIO) for choice in architecture.choices()]
    assert sum(tensor.n_bytes for tensor in file.values()) == sum(cost.weight_bytes for cost in costs)
    assert costs[-2].decode_bytes == costs[-2].active_parameters == 0
    assert costs[-2].weight_bytes == gguf_embedding_bytes(shape, embedding)
    assert costs[-1].decode_bytes == costs[-1].weight_bytes == gguf_head_bytes(shape, head, is_chosen=True)
    assert sum(cost.parameters for cost in costs[-2:]) == fixed_cost(shape, SCENARIO).parameters
    again = as_stored(child, "f16", stored).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in child.state_dict().items())
    compare_closely(tmp_path / "child.gguf", child, vocabulary, None)
    write_random_gguf(tmp_path / "random.gguf", parent.model.config, architecture, "f16")
    random = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "random.gguf").tensors}
    assert random == {name: tensor.tensor_type for name, tensor in file.items()}


def test_one_precision_for_both_is_still_spelled_and_costed(parent: Parent) -> None:
    both = Choice.parse(f"L{parent.shape.layers}.tables=tables@q5_0")
    apart = stored_as(parent, "q5_0", "q5_0").table_choices()
    held = [choice_cost(choice, parent.shape, SCENARIO).weight_bytes for choice in (both, *apart)]
    assert held[0] == held[1] + held[2]
    assert [str(geometry) for choice in (both, *apart) for geometry in geometries(choice)] == [
        "fixed@q5_0", "embedding@q5_0", "head@q5_0",
    ]  # fmt: skip


# Searches


@pytest.fixture(scope="module")
def home(folder: Path, ray_here: None) -> Path:
    """The home of a finished search of precisions of an untied parent, called apart."""
    out = folder.parent / "home"
    done = nas(out, "search", job(folder.parent, name="apart", parent=str(folder), space=BITS_ONLY, **HOW))
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_a_search_chooses_each(home: Path, parent: Parent) -> None:
    (trial,) = rows(home, "trial")
    architecture = Architecture.parse(trial["architecture"])
    assert [table.kind for table in architecture.tables] == ["embedding", "head"]
    (path,) = Path(trial["child_path"]).glob("*.gguf")
    file = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    types = [file[name].tensor_type.name.lower() for name in ("token_embd.weight", "output.weight")]
    assert types == [table.precision for table in architecture.tables]
    shape = parent.shape
    promised = sum(gguf_bytes(choice, shape, "f16") for choice in architecture.choices() if not choice.is_table)
    promised += gguf_embedding_bytes(shape, types[0]) + gguf_head_bytes(shape, types[1], is_chosen=True)
    assert sum(tensor.n_bytes for tensor in file.values()) == promised == trial["file_bytes"]
    (child_file,) = (home / "children").glob(f"{trial['child_key']}*")
    stored = stored_in_child(child_file)
    assert {EMBEDDING, HEAD} <= stored.keys()
    compare_closely(path, as_stored(load_child(child_file), "f16", stored), dummy_vocabulary(shape.vocabulary), None)


def test_costs_of_the_embedding_are_bytes_alone(home: Path, parent: Parent) -> None:
    with Store.open(home / "nas.db") as store:
        table = table_of(store, store.find_search("apart"))
    names = {name: times for name, times in table.geometries.items() if name.partition("@")[0] in ("embedding", "head")}
    assert len(names) == 2 * len(BITS_ONLY["precision"])
    heads = [times for name, times in names.items() if name.startswith("head")]
    assert sum(times.decode_s for times in heads) > 0
    assert not any(times.prefill_s or times.decode_s for name, times in names.items() if name.startswith("embedding"))
    assert table.times, "its names are read back"


@pytest.mark.parametrize(
    "question",
    [
        ("solve", "apart", "--budget", "file=80%"),
        ("pool", "apart", "--budget", "file=75%", "--count", "3"),
        ("solve", "apart", "--budget", "file=75%", "--refine", "6"),
        ("compare", "apart", "--budget", "file=75%", "--evaluations", "4", "--seeds", "1"),
        ("precisions", "apart", "--no-time"),
        ("show", "1"),
        ("costs", "check", "apart", "--children", "2"),
        ("report", "apart"),
    ],
    ids=" ".join,
)
def test_every_question_has_an_answer(
    home: Path, here: Here, question: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = here(home, *question)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_tied_parent_is_untied_where_the_job_says_so(tmp_path: Path) -> None:
    space: dict[str, Any] = BITS_ONLY | {"untie": True, "precision": ["q8_0", "q4_0"]}
    done = nas(
        tmp_path / "home", "search", job(tmp_path, name="untied", space=space, **HOW | {"budget": {"file": "95%"}})
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = rows(tmp_path / "home", "trial")
    architecture, shape = Architecture.parse(trial["architecture"]), load_parent(str(EMBEDDED)).shape
    assert shape.tied
    assert architecture.has_own_head
    (path,) = Path(trial["child_path"]).glob("*.gguf")
    file = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    types = [file[name].tensor_type.name.lower() for name in ("token_embd.weight", "output.weight")]
    assert types == [table.precision for table in architecture.tables]
    assert sum(tensor.n_bytes for tensor in file.values()) == trial["file_bytes"] == trial["predicted_file_bytes"]


def test_untying_is_for_precisions(here: Here, tmp_path: Path) -> None:
    done = here(tmp_path / "home", "search", job(tmp_path, space={"untie": True}))
    assert "space.untie" in the_error(done.stderr)
    assert "space.precision" in the_error(done.stderr)
