"""Plain children whose parts have precisions of their own: one size, many types, a stock architecture."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from conftest import EMBEDDED
from parents import child_of, random_parent
from rich.console import Console
from searches import Here, job, nas, rows
from test_gguf_cases import SIZES, VOCABULARY
from test_plain import sizes
from test_precision_search import HOW, PRECISIONS
from transformers import AutoTokenizer

from blocklib.block import Architecture
from blocklib.formats.gguf import as_stored, write_gguf
from blocklib.formats.gguf_vocabulary import dummy_vocabulary
from blocklib.parent import load_parent
from db.store import Store
from nas.export.gguf_tokenizer import vocabulary_of
from nas.export.verify_gguf import compare_closely
from nas.serving.of_trial import child_of as child_of_trial
from nas.serving.of_trial import parent_of
from nas.stages.child_file import load_child, stored_in_child

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.usefixtures("ray_here")

SPACE: dict[str, Any] = {"plain": True, "ffn": ["50%"], "precision": PRECISIONS}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a finished search of plain children with precisions, called plain."""
    folder = tmp_path_factory.mktemp("plain-bits")
    done = nas(folder / "home", "search", job(folder, name="plain", space=SPACE, **HOW | {"budget": {"file": "62%"}}))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "home"


def test_it_is_a_llama_with_a_type_for_each_part(home: Path) -> None:
    built = next(row for row in rows(home, "trial") if row["kl"] is not None)
    assert (built["solver"], built["status"]) == ("plain", "optimal")
    architecture = Architecture.parse(built["architecture"])
    assert len(sizes(str(architecture.unrounded))) == 1
    (path,) = Path(built["child_path"]).glob("*.gguf")
    file = gguf.GGUFReader(path)
    assert file.fields["general.architecture"].contents() == "llama"
    assert sum(tensor.n_bytes for tensor in file.tensors) == built["file_bytes"] == built["predicted_file_bytes"]
    kept = [block for _, block in architecture.placed() if str(block) != "skip+skip"]
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in file.tensors}
    assert file.fields["llama.block_count"].contents() == len(kept)
    for index, block in enumerate(kept):
        stored = tuple(types[f"blk.{index}.{name}.weight"] for name in ("attn_q", "ffn_gate"))
        assert stored == (block.attention.precision, block.ffn.precision)


def test_the_command_and_the_card_say_that_the_types_are_mixed(home: Path, here: Here, tmp_path: Path) -> None:
    trial = next(row for row in rows(home, "trial") if row["kl"] is not None)
    done = here(home, "export", str(trial["id"]), "--format", "gguf", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    file = gguf.GGUFReader(tmp_path / "out/model-MIXED.gguf")
    held: Counter[str] = Counter()
    for tensor in file.tensors:
        if len(tensor.shape) > 1:
            held[tensor.tensor_type.name.lower()] += tensor.n_bytes
    shares = ", ".join(f"{count / held.total():.0%} {name}" for name, count in held.most_common())
    named = gguf.LlamaFileType(file.fields["general.file_type"].contents()).name.removeprefix("MOSTLY_").lower()
    said = f"Its types are mixed: of the bytes of its matrices, {shares}. Tools that show one type show {named}."
    assert said in done.stdout
    assert "Its types are mixed" in (tmp_path / "out/README.md").read_text()
    assert named in PRECISIONS


def test_the_parent_is_served_beside_it_as_the_search_refers_to_it(home: Path) -> None:
    """In q8_0, the scenario's type, whatever most of the child is stored in; rows of 432 are f16."""
    with Store.open(home / "nas.db") as store:
        trial = next(one for one in store.trials(store.find_search("plain").id) if one.child_path)
        child = child_of_trial(store, trial, "llama_cpp", Console(quiet=True))
        parent = parent_of(store, trial, child, Console(quiet=True))
    assert {tensor.type for tensor in parent.header.weights.values() if len(tensor.shape) > 1} == {"q8_0", "f16"}


def test_llama_cpp_is_as_near_to_it_as_to_a_uniform_file(home: Path, tmp_path: Path) -> None:
    built = next(row for row in rows(home, "trial") if row["kl"] is not None)
    (child_file,) = (home / "children").glob(f"{built['child_key']}*")
    child, tokenizer = load_child(child_file), AutoTokenizer.from_pretrained(EMBEDDED)
    vocabulary = vocabulary_of(tokenizer, child.config.vocab_size)
    (path,) = Path(built["child_path"]).glob("*.gguf")
    far = compare_closely(path, as_stored(child, "f16", stored_in_child(child_file)), vocabulary, tokenizer)
    parent = load_parent(str(EMBEDDED))
    write_gguf(tmp_path / "uniform.gguf", parent.whole(), "q8_0", vocabulary)
    uniform = compare_closely(tmp_path / "uniform.gguf", as_stored(parent.whole(), "q8_0"), vocabulary, tokenizer)
    assert far.kl <= 4 * uniform.kl + 1e-4, f"{far} against {uniform}"


@pytest.mark.parametrize(
    "question",
    [
        ("solve", "plain", "--budget", "file=80%"),
        ("pool", "plain", "--budget", "file=70%", "--count", "3"),
        ("pareto", "plain", "--cost", "file", "--points", "6"),
        ("compare", "plain", "--budget", "file=70%", "--evaluations", "4", "--seeds", "1"),
    ],
    ids=lambda question: question[0],
)
def test_every_answer_is_plain(home: Path, here: Here, question: tuple[str, ...]) -> None:
    done = here(home, *question, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = list(architectures(json.loads(done.stdout)))
    assert told
    assert all(len(sizes(str(one.unrounded))) <= 1 for one in told)
    stored = [{part.precision for choice in one.choices() for part in choice.parts} - {""} for one in told]
    assert max(map(len, stored)) > 1


def architectures(told: Any) -> Iterator[Architecture]:
    """Those of every answer in what a command tells."""
    if isinstance(told, list):
        for one in told:
            yield from architectures(one)
    elif isinstance(told, dict):
        if "architecture" in told:
            yield Architecture.parse(told["architecture"])
        for one in told.values():
            yield from architectures(one)


@pytest.mark.parametrize(("family", "carrier"), [("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")])
def test_layers_alike_but_for_their_types_keep_the_parents_own_architecture(
    family: str, carrier: str, tmp_path: Path
) -> None:
    plain = {"attention_bias": False, "mlp_bias": False} if family == "llama" else {}
    parent = random_parent(family, **SIZES | {"tie_word_embeddings": True} | plain)
    child = child_of(parent, "kv2@q8_0+ffn64@q4_0 skip+skip kv2@q5_1+ffn64@q8_0 kv2@iq4_nl+ffn64@q5_0 tables@q5_0")
    vocabulary = dummy_vocabulary(VOCABULARY)
    model = write_gguf(tmp_path / "child.gguf", child, "f16", vocabulary)
    assert model.carrier.name == carrier
    compare_closely(tmp_path / "child.gguf", as_stored(child, "f16"), vocabulary, None)
