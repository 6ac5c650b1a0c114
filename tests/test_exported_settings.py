"""What an export says of itself: its parent's settings, each exception on purpose, and nothing that was left by work
on the child."""

import json
import os
import shutil
import stat
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from parents import EVERY_KIND, FAMILIES, child_of, random_ids, random_model, random_parent
from searches import job, nas, rows
from test_export import CARD, tokenizer
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from blocklib.block import Choice
from blocklib.library import Library
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import load_parent
from cost_models.scenario import Scenario
from cost_models.timing import Rounds, time_models
from nas.children import load_child, save_child
from nas.deliver import as_assembled
from nas.evaluate import evaluate
from nas.export.compare import ReloadMismatch
from nas.export.decilm import export_decilm
from nas.export.exported import whole_folder
from nas.export.generation import generation_of
from nas.export.hf import check_work, export_hf
from nas.export.settings import CHANGED, GENERATION_CHANGED, LEFT_BEHIND, TRANSLATED, check_config, settings_of
from nas.heal import heal
from nas.healing import Healing

__all__ = ["tokenizer"]
CASE = Path(__file__).parents[1] / "../shared/cases/generation_settings_invalid"
ATTENTION_FREE = "skip+ffn48 linear+ffn48 skip+skip linear+linear skip+ffn16 linear+ffn48"
HEALED = "kv2+ffn16 skip+ffn48 kv4+ffn48 kv4+skip kv4+ffn48 kv1+ffn48"


def tokens_of_each_forward(model: Any, ids_BT: Tensor, **how: Any) -> list[int]:
    """What each forward of `generate` reads of a sequence."""
    seen: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
    model.generate(ids_BT, max_new_tokens=5, pad_token_id=0, eos_token_id=None, **how)
    hook.remove()
    return seen


def healed(tmp_path: Path, parent: Any) -> PuzzleNasForCausalLM:
    child = deepcopy(child_of(parent, HEALED))
    once = Healing(tokens=4 * 12, batch=4, learning_rate=1e-3, warmup=0.0, hidden_weight=1.0)
    list(heal(parent.model, child, random_ids(parent, sequences=4), once, tmp_path / "checkpoints"))
    return child


def settings_as_json(model: PuzzleNasForCausalLM) -> list[str]:
    return [json.dumps(each.to_dict(), default=str) for each in (model.config, model.generation_config)]


# What work leaves


def test_healing_timing_and_evaluating_change_no_setting(tmp_path: Path) -> None:
    parent = random_parent()
    child, ids = deepcopy(child_of(parent, HEALED)), random_ids(parent, sequences=4)
    before = settings_as_json(child), settings_as_json(parent.model)
    once = Healing(tokens=4 * 12, batch=4, learning_rate=1e-3, warmup=0.0, hidden_weight=1.0)
    list(heal(parent.model, child, ids, once, tmp_path))
    evaluate(parent.model, child, ids)
    scenario = Scenario("cpu", "float32", 1, 8, 4, 1)
    time_models(parent.model, child, scenario, Rounds(least=2, most=2))
    assert (settings_as_json(child), settings_as_json(parent.model)) == before


def test_a_healing_that_fails_changes_no_setting_either(tmp_path: Path) -> None:
    parent = random_parent()
    child = deepcopy(child_of(parent, HEALED))
    before = settings_as_json(child)
    child.model.norm.weight.data[0] = torch.nan
    once = Healing(tokens=4 * 12, batch=4, learning_rate=1e-3, warmup=0.0, hidden_weight=1.0)
    with pytest.raises(ValueError, match="healing: the loss is nan"):
        list(heal(parent.model, child, random_ids(parent, sequences=4), once, tmp_path))
    assert settings_as_json(child) == before


def test_a_child_kept_with_its_cache_off_is_delivered_with_it_on(tmp_path: Path) -> None:
    """As every one that was healed before the trainer's settings were undone."""
    parent = random_parent()
    child = child_of(parent, HEALED)
    child.config.use_cache = False
    save_child(tmp_path / "child.safetensors", child, {})
    delivered = as_assembled(load_child(tmp_path / "child.safetensors"))
    assert delivered.config.use_cache is True
    assert delivered.config.to_dict() == child_of(parent, HEALED).config.to_dict()
    assert tokens_of_each_forward(delivered, random_ids(parent, tokens=9)) == [9, 1, 1, 1, 1]


# How `generate` works


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("spelling", [EVERY_KIND, ATTENTION_FREE])
def test_generate_reads_a_token_a_step(family: str, how: dict[str, Any], spelling: str) -> None:
    parent = random_parent(family)
    ids = random_ids(parent, tokens=9)
    assert tokens_of_each_forward(child_of(parent, spelling), ids, **how) == [9, 1, 1, 1, 1]


def test_an_attention_free_child_generates_what_it_does_without_cached_steps() -> None:
    for family in ("llama", "gpt2"):  # GPT-2's positions are learned: a step must know its own.
        parent = random_parent(family)
        child = child_of(parent, ATTENTION_FREE)
        ids, mask = random_ids(parent, tokens=9), torch.ones(2, 9, dtype=torch.long)
        mask[1, :4] = 0
        how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
        model: Any = child
        assert torch.equal(model.generate(ids, **how), model.generate(ids, use_cache=False, **how))


def test_the_parents_work_is_the_measure() -> None:
    used = {"mode": "greedy_search", "refused": None}
    check_work(16, used | {"seen": [16, 1, 1, 1]})
    check_work(16, used | {"seen": [8, 8, 1, 1, 1]})  # A prompt in chunks
    check_work(16, used | {"seen": [16, 4, 4], "mode": "assisted_generation"})
    with pytest.raises(ReloadMismatch, match=r"after a prompt of 16, 3\.7 times as many .*: the cache is not used"):
        check_work(16, used | {"seen": [16, 17, 18, 19]})


def test_a_healed_child_is_exported_with_its_cache(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """And the card's code, as it stands and with nobody to answer a question, loads it and its tokenizer."""
    parent = random_parent(vocab_size=272)
    out = tmp_path / "out"
    export_hf(healed(tmp_path, parent), tokenizer, out, CARD)
    assert json.loads((out / "config.json").read_text())["use_cache"] is True
    assert json.loads((out / "generation_config.json").read_text()).get("use_cache") is not False
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    script = f"""
folder = {str(out)!r}
{code}
seen = []
model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
model.generate(ids, max_new_tokens=4, eos_token_id=None)
print(ids.shape[1], seen)
"""
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "16 [16, 1, 1, 1]"
    assert "y/N" not in done.stdout + done.stderr


def test_an_export_whose_cache_is_off_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    child = child_of(random_parent(vocab_size=272), HEALED)
    child.generation_config.use_cache = False
    with pytest.raises(ReloadMismatch, match="the cache is not used"):
        export_hf(child, tokenizer, tmp_path / "out", CARD)
    assert list(tmp_path.iterdir()) == []


# config.json


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_child_says_otherwise_is_written_down(family: str) -> None:
    config = FAMILIES[family]()
    child = child_of(random_parent(family), EVERY_KIND)
    assert check_config(child.config, config, {}) == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_position_embeddings", 63),
        ("eos_token_id", 5),
        ("rms_norm_eps", 1e-3),
        ("vocab_size", 65),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5.0}),
        ("of_no_parent", 1),
    ],
)
def test_a_field_that_differs_for_no_reason_is_refused(field: str, value: Any) -> None:
    child = child_of(random_parent(), EVERY_KIND)
    setattr(child.config, field, value)
    with pytest.raises(ReloadMismatch, match=f"config.json: {field} is .*, the parent's h.*nothing asked for that"):
        check_config(child.config, FAMILIES["llama"](), {})


def test_a_cache_that_is_off_is_refused_in_config_too() -> None:
    child = child_of(random_parent(), EVERY_KIND)
    child.config.use_cache = False
    with pytest.raises(ReloadMismatch, match="use_cache is off"):
        check_config(child.config, FAMILIES["llama"](), {})


def test_what_only_the_parent_says_is_told() -> None:
    child = child_of(random_parent(), EVERY_KIND)
    (note,) = check_config(child.config, FAMILIES["llama"](trained_by="someone", use_cache=False), {})
    assert note == "config.json of the parent also says trained_by, which is not carried over."


def test_every_exception_has_its_reason_and_one_place() -> None:
    lists = (CHANGED, TRANSLATED, LEFT_BEHIND)
    assert all(reason.strip() for each in (*lists, GENERATION_CHANGED) for reason in each.values())
    assert sum(map(len, lists)) == len(CHANGED | TRANSLATED | LEFT_BEHIND)


# generation_config.json


def saved(folder: Path, settings: object, **in_config: Any) -> Path:
    """The folder of a tiny parent that generates so; None: it does not say."""
    model = random_model(FAMILIES["llama"](vocab_size=272))
    model.save_pretrained(folder)
    file = folder / "generation_config.json"
    file.unlink()
    if settings is not None:
        file.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | in_config))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("parent"), None)


# What the parent says, and what of it is left out.
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
    assert [note.split(" is left out")[0].split("setting ")[1] for note in done.notes] == [
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
    (note,) = done.notes
    assert note.startswith("`generate(ids)` fails with the generation settings that are the parent's: ")
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


def test_decilm_is_held_against_its_parent_too(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=272, hidden_size=32, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 5e3},
    )  # fmt: skip
    random_model(config).save_pretrained(tmp_path / "parent")
    (tmp_path / "parent/generation_config.json").write_text(json.dumps({"top_k": 3, "eos_token_id": [1, 5]}))
    parent = load_parent(str(tmp_path / "parent"))
    asked = settings_of(str(tmp_path / "parent"))
    done = export_decilm(child_of(parent, "kv2+ffn256 skip+ffn512"), tokenizer, tmp_path / "out", CARD, asked)
    assert "top_k: 3 is left out" in done.notes[-1]
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == [1, 5]
    child = child_of(parent, "kv2+ffn256 skip+ffn512")
    child.config.max_position_embeddings = 63
    with pytest.raises(ReloadMismatch, match=r"config\.json: max_position_embeddings is 63, the parent's has 64"):
        export_decilm(child, tokenizer, tmp_path / "other", CARD, asked)


def test_the_parents_configuration_is_read_without_its_code(tmp_path: Path) -> None:
    source = saved(tmp_path / "parent", None)
    config = json.loads((source / "config.json").read_text()) | {"auto_map": {"AutoConfig": "evil.Config"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "evil.py").write_text("raise SystemExit('it ran')")
    read: PretrainedConfig = settings_of(str(source)).config
    assert type(read) is type(AutoConfig.for_model("llama"))


@pytest.mark.slow
@pytest.mark.skipif(not CASE.is_dir(), reason="no such case beside the repository")
def test_a_search_of_such_a_parent_ends_with_a_folder(tmp_path: Path) -> None:
    done = nas(tmp_path / "home", "search", CASE / "job.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The parent's generation setting temperature: 0.9 is left out" in done.stdout
    (written,) = (tmp_path / "home/exports").glob("*/hf/generation_config.json")
    assert json.loads(written.read_text()).keys() == {"bos_token_id", "eos_token_id", "transformers_version"}
    assert "base_model" not in written.with_name("README.md").read_text()


# Who may read it


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_are_as_open_as_any_others(mask: int, tmp_path: Path) -> None:
    parent = random_parent()
    before = os.umask(mask)
    try:
        (tmp_path / "any").touch()
        with whole_folder(tmp_path / "export") as inside:
            child_of(parent, HEALED).save_pretrained(inside)
        save_child(tmp_path / "children/child.safetensors", parent.model, {})
        Library(tmp_path / "library").save(Choice.parse("L0.ffn=ffn16"), "key", {"a": torch.ones(1)}, {})
        healed(tmp_path, parent)
    finally:
        os.umask(before)
    usual = stat.S_IMODE((tmp_path / "any").stat().st_mode)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json"}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: oct(usual) for path in files}


# One search, two names


@pytest.mark.slow
def test_a_second_name_is_told_the_first(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "home", tmp_path / "home")
    again = nas(tmp_path / "home", "search", job(tmp_path, name="other"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert (
        "other: this parent, text, space and scenario are the search tiny already; it keeps that name" in again.stdout
    )
    assert "\nsearch tiny (" in again.stdout
    assert [search["name"] for search in rows(tmp_path / "home", "search")] == ["tiny"]
