"""The files that a child takes over from its parent, the front matter of its card, and the versions that load it."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from checkpoints import configure, saved, tokenizer
from parents import child_of, random_parent
from transformers import AutoTokenizer

from blocklib.parent import load_parent
from nas.export.carried_files import copy_tokenizer
from nas.export.decilm import export_decilm
from nas.export.exported import Exported
from nas.export.hf import export_hf
from nas.export.least_version import LEAST_TRANSFORMERS
from nas.export.parent_settings import settings_of
from nas.export.published import card_data
from nas.export.verify import compare_in_fresh_process

SPELLING = "skip+ffn48 kv2+ffn16 kv4+skip skip+skip kv1+fuse(ffn48,ffn24)"
PLAIN = {"attention_bias": False, "mlp_bias": False}
OTHERS = os.environ.get("PUZZLE_NAS_PYTHONS", "").split()
"""Pythons with other versions of transformers."""


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    folder = saved(tmp_path / "parent", **PLAIN)
    configure(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    (folder / "LICENSE").write_text("Do as you like.")
    (folder / "NOTICE.txt").write_text("By someone.")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0b")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tools.jinja").write_text("{{ tools }}")
    return folder


@pytest.mark.parametrize("export", [export_hf, export_decilm])
def test_tokenizer_and_licence_are_the_parents_own(
    parent: Path, tmp_path: Path, export: Callable[..., Exported]
) -> None:
    child = child_of(load_parent(str(parent)), "kv2+ffn16 kv4+ffn48")
    out = export(child, tokenizer(), tmp_path / "child", "# A child", settings_of(str(parent))).folder
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja",
                 "additional_chat_templates/tools.jinja", "LICENSE", "NOTICE.txt"):  # fmt: skip
        assert (out / name).read_bytes() == (parent / name).read_bytes(), name


@pytest.mark.parametrize("export", [export_hf, export_decilm])
def test_a_tokenizer_of_several_templates_is_written_whole(tmp_path: Path, export: Callable[..., Exported]) -> None:
    several = tokenizer()
    several.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    made = export(child_of(random_parent(**PLAIN), SPELLING), several, tmp_path / "child", "# A child")
    assert "additional_chat_templates/tools.jinja" in made.files
    assert AutoTokenizer.from_pretrained(made.folder).chat_template == several.chat_template


def test_settings_without_a_class_or_with_code_are_not_copied(parent: Path, tmp_path: Path) -> None:
    for number, change in enumerate(({"tokenizer_class": None}, {"auto_map": {"AutoTokenizer": [None, "own.Own"]}})):
        configure(parent, "tokenizer_config.json", **{"tokenizer_class": "PreTrainedTokenizerFast"} | change)
        out = tmp_path / str(number)
        out.mkdir()
        assert "tokenizer_config.json" not in copy_tokenizer(parent, out)
        assert (out / "tokenizer.json").is_file()


def test_the_card_names_the_parent_and_its_licence(parent: Path) -> None:
    front = {"license": "other", "license_name": "own", "license_link": "LICENSE", "model_name": "someone/parent"}
    (parent / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n# Parent\n")
    told = yaml.safe_load(card_data(str(parent), parent).to_yaml())
    assert told == {
        "base_model": "someone/parent", "base_model_relation": "finetune", "library_name": "transformers",
        "license": "other", "license_link": "LICENSE", "license_name": "own", "pipeline_tag": "text-generation",
        "tags": ["puzzle-nas"],
    }  # fmt: skip
    (parent / "README.md").write_text("# No front matter\n")
    assert (
        not {"base_model", "base_model_relation", "license"}
        & yaml.safe_load(card_data(str(parent), parent).to_yaml()).keys()
    )


@pytest.fixture(scope="module", params=[export_hf, export_decilm])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    child = child_of(random_parent(**PLAIN), SPELLING)
    out: Exported = request.param(child, tokenizer(), tmp_path_factory.mktemp("out") / "child", "# A child")
    return out.folder


def test_an_older_transformers_is_told_which_it_needs(exported: Path, tmp_path: Path) -> None:
    assert f"version {LEAST_TRANSFORMERS} or newer" in (exported / "README.md").read_text()
    (modelling,) = exported.glob("modeling_*.py")
    code = modelling.read_text().replace(f"transformers>={LEAST_TRANSFORMERS}", "transformers>=99.1")
    (tmp_path / "later.py").write_text(code)
    with pytest.raises(ImportError, match=r"transformers>=99\.1 is required.*\n.*pip install -U transformers"):
        exec(compile(code, "later.py", "exec"), {"__name__": "later"})


def test_the_configuration_says_the_least_version(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    if config["model_type"] == "puzzle_nas":
        assert config["least_transformers"] == LEAST_TRANSFORMERS


@pytest.mark.skipif(not OTHERS, reason="PUZZLE_NAS_PYTHONS names no Python with another transformers")
@pytest.mark.parametrize("python", OTHERS)
def test_another_transformers_loads_it(exported: Path, python: str) -> None:
    child = child_of(random_parent(**PLAIN), SPELLING)
    version = subprocess.run([python, "-c", "import transformers; print(transformers.__version__)"],
                             capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert version
    difference, notes = compare_in_fresh_process(child, tokenizer(), exported, python=python)
    assert difference < 1e-4
    assert notes == ()
