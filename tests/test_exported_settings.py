"""The settings of an export: its parent's settings, each exception on purpose, and nothing that was left by work
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
from parents import EVERY_KIND, FAMILIES, child_of, every_kind, random_ids, random_model, random_parent
from searches import job, nas, rows
from test_export import CARD, tokenizer
from torch import Tensor
from transformers import AutoConfig, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from blocklib.block import Choice
from blocklib.library import Library
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import load_parent
from cost_models.engines.torch_eager import time_models
from cost_models.scenario import Scenario
from cost_models.timing.pair import Rounds
from nas.errors import ExportMismatchError
from nas.export.decilm import export_decilm
from nas.export.exported import whole_folder
from nas.export.hf import export_hf
from nas.export.parent_settings import CHANGED, GENERATION_CHANGED, LEFT_BEHIND, TRANSLATED, check_config, settings_of
from nas.export.verify import check_work
from nas.stages.child_file import load_child, save_child
from nas.stages.evaluate import evaluate
from nas.stages.export import as_assembled
from nas.stages.heal import heal
from nas.stages.heal_settings import Healing

__all__ = ["tokenizer"]
ATTENTION_FREE = "skip+ffn48 linear+ffn48 skip+skip linear+linear skip+ffn16 linear+ffn48"
HEALED = "kv2+ffn16 skip+ffn48 kv4+ffn48 kv4+skip kv4+ffn48 kv1+ffn48"


def tokens_of_each_forward(model: Any, ids_BT: Tensor, **how: Any) -> list[int]:
    """The tokens of a sequence that each forward of `generate` reads."""
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


# Traces of work


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
    delivered = as_assembled(load_child(tmp_path / "child.safetensors"), child.dtype)
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
    with pytest.raises(
        ExportMismatchError, match=r"after a prompt of 16, 3\.7 times as many .*: the cache is not used"
    ):
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
    with pytest.raises(ExportMismatchError, match="the cache is not used"):
        export_hf(child, tokenizer, tmp_path / "out", CARD)
    assert list(tmp_path.iterdir()) == []


# config.json


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_child_says_otherwise_is_written_down(family: str) -> None:
    config = FAMILIES[family]()
    child = child_of(random_parent(family), every_kind(family))
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
    with pytest.raises(
        ExportMismatchError, match=f"config.json: {field} is .*, but the parent's config.json h.*they must agree"
    ):
        check_config(child.config, FAMILIES["llama"](), {})


def test_a_cache_that_is_off_is_refused_in_config_too() -> None:
    child = child_of(random_parent(), EVERY_KIND)
    child.config.use_cache = False
    with pytest.raises(ExportMismatchError, match="use_cache is off"):
        check_config(child.config, FAMILIES["llama"](), {})


def test_what_only_the_parent_says_is_told() -> None:
    child = child_of(random_parent(), EVERY_KIND)
    (note,) = check_config(child.config, FAMILIES["llama"](trained_by="someone", use_cache=False), {})
    assert note == "The parent's config.json also has trained_by; this is not carried over."


def test_every_exception_has_its_reason_and_one_place() -> None:
    lists = (CHANGED, TRANSLATED, LEFT_BEHIND)
    assert all(reason.strip() for each in (*lists, GENERATION_CHANGED) for reason in each.values())
    assert sum(map(len, lists)) == len(CHANGED | TRANSLATED | LEFT_BEHIND)


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
    with pytest.raises(
        ExportMismatchError, match=r"max_position_embeddings is 63, but the parent's config\.json has 64"
    ):
        export_decilm(child, tokenizer, tmp_path / "other", CARD, asked)


def test_the_parents_configuration_is_read_without_its_code(tmp_path: Path) -> None:
    source = saved(tmp_path / "parent", None)
    config = json.loads((source / "config.json").read_text()) | {"auto_map": {"AutoConfig": "evil.Config"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "evil.py").write_text("raise SystemExit('it ran')")
    read: PretrainedConfig = settings_of(str(source)).config
    assert type(read) is type(AutoConfig.for_model("llama"))


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
    assert "other: this parent, text, space and scenario belong to the search tiny; it keeps that name" in again.stdout
    assert "\nsearch tiny (" in again.stdout
    assert [search["name"] for search in rows(tmp_path / "home", "search")] == ["tiny"]
