"""How a parent generates, carried over to a child: every odd setting, and none of them breaks an export."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from parents import child_of
from searches import nas
from test_export import CARD, tokenizer
from test_exported_settings import HEALED, saved
from transformers import GenerationConfig, PreTrainedTokenizerFast

from blocklib.parent import load_parent
from nas.export.generation import generation_of
from nas.export.hf import export_hf
from nas.export.parent_settings import settings_of

__all__ = ["tokenizer"]
CASE = Path(__file__).parents[1] / "../shared/cases/generation_settings_invalid"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("parent"), None)


# The parent's settings, and those that are left out.
ODD: dict[str, tuple[dict[str, Any], set[str]]] = {
    "sampling that is off": ({"temperature": 0.9, "top_p": 0.6, "min_p": 0.1}, {"temperature", "top_p", "min_p"}),
    "sampling": ({"do_sample": True, "temperature": 0.9, "top_k": 5, "num_return_sequences": 3}, set()),
    "several greedy answers": ({"num_return_sequences": 3}, {"num_return_sequences"}),
    "beams": ({"num_beams": 3, "num_return_sequences": 3, "early_stopping": True, "length_penalty": 2.0}, set()),
    "more answers than beams": ({"num_beams": 2, "num_return_sequences": 3}, {"num_return_sequences"}),
    "beams' settings without": ({"early_stopping": True, "length_penalty": 2.0}, {"early_stopping", "length_penalty"}),
    "stop strings": ({"stop_strings": ["\n\n"]}, set()),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, {"top_k"}),
    "short": ({"max_length": 2, "max_time": 0.001}, set()),
    "long": ({"min_length": 40, "min_new_tokens": 30}, set()),
    "nothing new": ({"max_new_tokens": 0}, {"max_new_tokens"}),
    "tokens": ({"eos_token_id": [1, 2, 3], "suppress_tokens": [4, 5], "begin_suppress_tokens": [6]}, set()),
    "forced": ({"forced_eos_token_id": 2, "forced_bos_token_id": 1, "bad_words_ids": [[7]]}, set()),
    "forced and suppressed": ({"forced_eos_token_id": 4, "suppress_tokens": [4]}, {"suppress_tokens"}),
    "static cache": ({"cache_implementation": "static"}, set()),
    "a cache there is not": ({"cache_implementation": "huge"}, {"cache_implementation"}),
    "chunks": ({"prefill_chunk_size": 5}, set()),
    "looking up": ({"prompt_lookup_num_tokens": 3}, set()),
    "outputs": ({"output_scores": True, "return_dict_in_generate": True}, set()),
    "outputs for nobody": ({"output_scores": True}, {"output_scores"}),
    "arguments": ({"logits_processor": [1], "streamer": 1}, {"logits_processor", "streamer"}),
    "compiling": ({"compile_config": {"mode": "default"}}, {"compile_config"}),
    "a watermark": ({"watermarking_config": {"colour": 1}}, {"watermarking_config"}),
    "no number": ({"temperature": "hot", "do_sample": True}, set()),
    "its own": ({"of_no_library": 3}, set()),
    "guidance": ({"guidance_scale": 1.5}, set()),
    "no cache": ({"use_cache": False}, set()),
}


@pytest.mark.parametrize("name", ODD)
def test_settings_are_carried_over_as_far_as_transformers_takes_them(name: str, folder: Path, tmp_path: Path) -> None:
    said, left_out = ODD[name]
    shutil.copytree(folder, tmp_path / "parent")
    (tmp_path / "parent/generation_config.json").write_text(json.dumps(said))
    carried = generation_of(str(tmp_path / "parent"))
    kept = {setting: value for setting, value in said.items() if setting not in left_out | {"use_cache"}}
    carried.settings.save_pretrained(tmp_path / "child")
    again = GenerationConfig.from_pretrained(tmp_path / "child").to_diff_dict()
    assert {setting: value for setting, value in again.items() if setting != "transformers_version"} == kept
    told = " ".join(carried.notes)
    assert all(f"setting {setting}: {said[setting]!r} is left out: " in told for setting in left_out)
    assert len(carried.notes) == len(left_out) + (said.get("use_cache") is False)
    assert load_parent(str(tmp_path / "parent")).shape.vocabulary == 272


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_settings_that_are_none_are_told_of(text: str, tmp_path: Path) -> None:
    carried = generation_of(str(saved(tmp_path, text, eos_token_id=7)))
    assert carried.settings.eos_token_id == 7
    assert carried.notes[0].startswith("generation_config.json of the parent is left out: ")


def test_a_parent_without_settings_generates_as_its_configuration_says(tmp_path: Path) -> None:
    carried = generation_of(str(saved(tmp_path, None, eos_token_id=[7, 8], max_length=5, num_return_sequences=3)))
    assert carried.settings.eos_token_id == [7, 8]
    assert carried.settings.max_length == 5
    assert "num_return_sequences: 3 is left out" in carried.notes[0]


def exported(name: str, folder: Path, tmp_path: Path, tokens: PreTrainedTokenizerFast) -> tuple[Any, dict[str, Any]]:
    said, _ = ODD[name]
    source = Path(shutil.copytree(folder, tmp_path / "parent"))
    (source / "generation_config.json").write_text(json.dumps(said))
    child = child_of(load_parent(str(source)), HEALED)
    done = export_hf(child, tokens, tmp_path / "out", CARD, settings_of(str(source)))
    return done, json.loads((tmp_path / "out/generation_config.json").read_text())


def test_an_export_does_not_depend_on_them(tokenizer: PreTrainedTokenizerFast, folder: Path, tmp_path: Path) -> None:
    done, written = exported("sampling that is off", folder, tmp_path, tokenizer)
    assert "temperature" not in written
    left_out = [note for note in done.notes if "is left out" in note]
    assert [note.split(" is left out")[0].split("setting ")[1] for note in left_out] == [
        "min_p: 0.1",
        "temperature: 0.9",
        "top_p: 0.6",
    ]
    assert all(note in (tmp_path / "out/README.md").read_text() for note in done.notes)


def test_settings_that_generate_refuses_are_told_of(
    tokenizer: PreTrainedTokenizerFast, folder: Path, tmp_path: Path
) -> None:
    done, written = exported("stop strings", folder, tmp_path, tokenizer)
    assert written["stop_strings"] == ["\n\n"]
    (note,) = (note for note in done.notes if note.startswith("`generate(ids)` fails with the parent's generation"))
    assert "tokenizer" in note
    assert note in (tmp_path / "out/README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_no_settings_break_an_export(
    name: str, tokenizer: PreTrainedTokenizerFast, folder: Path, tmp_path: Path
) -> None:
    done, written = exported(name, folder, tmp_path, tokenizer)
    assert done.max_logit_difference <= 1e-4
    said, left_out = ODD[name]
    assert all(written[setting] == said[setting] for setting in said.keys() - left_out - {"use_cache"})


@pytest.mark.slow
@pytest.mark.skipif(not CASE.is_dir(), reason="no such case beside the repository")
def test_a_search_of_such_a_parent_ends_with_a_folder(tmp_path: Path) -> None:
    done = nas(tmp_path / "home", "search", CASE / "job.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The parent's generation setting temperature: 0.9 is left out" in done.stdout
    (written,) = (tmp_path / "home/exports").glob("*/hf/generation_config.json")
    assert json.loads(written.read_text()).keys() == {"bos_token_id", "eos_token_id", "transformers_version"}
    assert "base_model" not in written.with_name("README.md").read_text()
