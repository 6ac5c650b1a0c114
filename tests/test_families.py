"""A search of every family with steps of its own, from a tiny random parent to its exports."""

import json
import shutil
from pathlib import Path

import pytest
from parents import FAMILIES, UNFUSED, random_model
from searches import job, nas, parent_folder

REFUSED = {
    "granite": {"decilm": "DeciLM engines have no multipliers of embedding, attention, residual or logits"},
    "gemma3_text": {
        "decilm": "DeciLM engines have no norms behind attention and FFN",
        "gguf": "no architecture of llama.cpp carries layers of any size whose FFN has activation gelu_pytorch_tanh",
    },
    "olmo2": {
        "decilm": "DeciLM engines have no norms behind attention and FFN",
        "gguf": "no architecture of llama.cpp carries norms behind attention and FFN",
    },
    "smollm3": {
        "decilm": "DeciLM engines have no layers whose attention has no positions",
        "gguf": "no architecture of llama.cpp carries layers whose attention has no positions",
    },
}
"""The words of a search for each format, before it begins."""


def random_folder(family: str, folder: Path) -> Path:
    """A random parent with the tokenizer of the trained one."""
    shutil.copytree(parent_folder(), folder, copy_function=shutil.copy)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    biases = {} if family == "smollm3" else {"attention_bias": False}
    random_model(FAMILIES[family](vocab_size=vocabulary, max_position_embeddings=128, **biases)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("family", "format"), [(family, format) for family in REFUSED for format in REFUSED[family]])
def test_a_format_that_cannot_carry_a_family_is_refused_before_any_work(
    family: str, format: str, tmp_path: Path
) -> None:
    parent = random_folder(family, tmp_path / "parent")
    space = {"attention": ["kv50%"], "ffn": ["50%"], "fuse": None, "drop_blocks": False}
    done = nas(tmp_path / "home", "search", job(tmp_path, parent=str(parent), space=space, export={"format": format}))
    assert done.returncode != 0
    assert REFUSED[family][format] in done.stderr
    assert not list((tmp_path / "home").rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("family", REFUSED)
def test_a_search_ends_and_its_child_is_exported(family: str, tmp_path: Path) -> None:
    parent, home = random_folder(family, tmp_path / "parent"), tmp_path / "home"
    fuse = None if family in UNFUSED else {"longest": 2}
    space = {"attention": ["kv50%", "skip"], "ffn": ["50%", "linear"], "fuse": fuse, "drop_blocks": True}
    done = nas(home, "search", job(tmp_path, parent=str(parent), space=space, export={"out": str(tmp_path / "hf")}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "hf/config.json").read_text())["model_type"] == "puzzle_nas"
    if "gguf" not in REFUSED[family]:
        done = nas(home, "export", "1", "--format", "gguf", "--precision", "q8_0", "--out", tmp_path / "gguf")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("family", REFUSED)
def test_a_plain_search_ends_in_a_model_of_the_family(family: str, tmp_path: Path) -> None:
    parent = random_folder(family, tmp_path / "parent")
    space = {"attention": ["kv50%"], "ffn": ["50%"], "fuse": None, "drop_blocks": True, "plain": True}
    # Most parameters are the tables'; 75 % would leave no layer.
    budget, export = {"parameters": "90%"}, {"format": "plain", "out": str(tmp_path / "plain")}
    asked = {"space": space, "export": export, "budget": budget}
    done = nas(tmp_path / "home", "search", job(tmp_path, parent=str(parent), **asked))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "plain/config.json").read_text())["model_type"] == family
