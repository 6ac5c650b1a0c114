"""A parent that is not what its files say, or that no search can use: refused by file, cause and remedy, before it is
loaded; and what looks odd and is right, loaded as it is."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import LFS_POINTER, configure, header, pickled, refused, rewrite, saved, sharded

from blocklib.errors import CheckpointError, UnsupportedModelError
from blocklib.hub import folder_of
from blocklib.parent import load_parent

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "model")


def cut(file: Path, keep: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))])


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_named(name: str, folder: Path) -> None:
    (folder / name).write_text(LFS_POINTER)
    said = refused(folder)
    assert said.startswith(f"{folder / name}: is a git-lfs pointer, not the file of 16,060,556,376 bytes")
    assert f"git lfs pull in {folder}" in said


def test_a_pointer_in_place_of_a_pickle_or_a_shard(folder: Path, tmp_path: Path) -> None:
    other = saved(tmp_path / "other")
    pickled(folder).write_text(LFS_POINTER)
    assert "pytorch_model.bin: is a git-lfs pointer" in refused(folder)
    index = sharded(other)
    (other / "model-00002-of-00002.safetensors").write_text(LFS_POINTER)
    assert "model-00002-of-00002.safetensors: is a git-lfs pointer" in refused(other)
    index.write_text(LFS_POINTER)
    assert "model.safetensors.index.json: is a git-lfs pointer" in refused(other)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.02, 0.5, 0.99])
def test_cut_weights_are_told_by_their_size(keep: float, folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.stat().st_size
    cut(file, keep)
    said = refused(folder)
    assert said.startswith(f"{file}: is ")
    if keep >= 0.5:
        assert f"is cut: {int(keep * whole):,} bytes, and its header counts {whole:,}" in said


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_cut_pickles_are_named(keep: float, folder: Path) -> None:
    file = pickled(folder)
    cut(file, keep)
    assert refused(folder).startswith(f"{file}: is ")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", '{"model_type": "llama",', "is not JSON, or cut: line 1"),
        ("config.json", "", "is empty"),
        ("config.json", "[1, 2]", "holds a list instead of keys and values"),
        ("config.json", '{"a": ' * 20_000, "nested too deep"),
        ("config.json", "{}", "has no model_type"),
        ("generation_config.json", "<!DOCTYPE html>", "is not JSON"),
        ("model.safetensors", "<!DOCTYPE html>" * 9, "is not a safetensors file"),
        ("pytorch_model.bin", "<!DOCTYPE html>" * 9, "is not a file that torch wrote"),
    ],
)
def test_a_file_that_is_something_else(name: str, text: str, said: str, folder: Path) -> None:
    if name.endswith(".bin"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(text)
    answer = refused(folder)
    assert answer.startswith(f"{folder / name}: ")
    assert said in answer


def test_latin_1_in_a_configuration(folder: Path) -> None:
    (folder / "config.json").write_bytes('{"author": "Père"}'.encode("latin-1"))
    assert f"{folder / 'config.json'}: is not JSON: byte 13 is not UTF-8" in refused(folder)


def test_a_damaged_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    entries, data = header(file)
    del entries[UP]["data_offsets"]
    text = json.dumps(entries).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert f"{file}: has a damaged header" in refused(folder)


def test_a_folder_that_is_gone(folder: Path) -> None:
    moved = folder.rename(folder.with_name("elsewhere"))
    assert refused(folder).startswith(f"{folder} is gone")
    assert load_parent(str(moved)).shape.layers == 2


def test_weights_of_another_layout_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert "holds no weights" in refused(folder)
    assert "consolidated.safetensors: of another layout" in refused(folder)


# --- shards ---------------------------------------------------------------------------------------------------------


def test_shards_load_as_one_file_does(folder: Path) -> None:
    digest = load_parent(str(folder)).digest
    sharded(folder)
    assert load_parent(str(folder)).digest == digest


def test_an_index_that_names_what_is_not_there(folder: Path) -> None:
    index = sharded(folder, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert f"{index}: names what is missing: model-00002-of-00003.safetensors" in refused(folder)


def test_an_index_and_a_shard_that_disagree(folder: Path) -> None:
    index = sharded(folder)
    said = json.loads(index.read_text())
    said["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(said))
    expected = f"{index}: says that model-00001-of-00002.safetensors holds model.extra.weight, but it does not"
    assert refused(folder).startswith(expected)


@pytest.mark.parametrize("weight_map", [None, {}, [], {UP: 3}, {UP: "../model.safetensors"}])
def test_an_index_that_is_none(weight_map: Any, folder: Path) -> None:
    index = sharded(folder)
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert refused(folder).startswith(f"{index}: ")


# --- what is no parent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    ],
)
def test_quantised_configurations_are_refused(asked: dict[str, Any], folder: Path) -> None:
    configure(folder, quantization_config=asked)
    assert f"config.json: quantization_config: its weights are quantised ({asked['quant_method']})" in refused(folder)


def test_quantisation_that_lies_beside_the_configuration(folder: Path) -> None:
    configure(folder, "hf_quant_config.json", quantization={"quant_algo": "FP8"})
    assert f"{folder / 'hf_quant_config.json'}: its weights are quantised" in refused(folder)


@pytest.mark.parametrize(
    "name", ["weight_scale", "weight_scale_inv", "input_scale", "qweight", "qzeros", "scales", "weight_packed"]
)
def test_scales_that_would_be_dropped_are_refused(name: str, folder: Path) -> None:
    tensor = f"model.layers.0.mlp.up_proj.{name}"
    rewrite(folder, lambda weights: weights.update({tensor: torch.ones(1)}))
    assert f"{tensor}: its weights are quantised" in refused(folder)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_weights_of_a_narrow_type_are_refused(dtype: torch.dtype, folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({UP: weights[UP].to(dtype)}))
    assert f"model.safetensors: {UP} is stored as" in refused(folder)


def test_int8_weights_in_a_pickle_are_refused(folder: Path) -> None:
    pickled(folder, lambda weights: weights.update({UP: weights[UP].to(torch.int8)}))
    assert f"pytorch_model.bin: {UP} is stored as torch.int8" in refused(folder)


def test_layers_that_differ_are_refused(folder: Path) -> None:
    configure(folder, per_layer_config={"1": {"intermediate_size": 24}})
    assert f"{folder / 'config.json'}: per_layer_config: its layers differ" in refused(folder)


def test_an_adapter_is_no_model(folder: Path) -> None:
    configure(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path="some/other")
    assert f"{folder / 'adapter_config.json'}: an adapter lies beside the model" in refused(folder)
    (folder / "config.json").unlink()
    assert "it holds an adapter: merge that into its base model first" in refused(folder)


@pytest.mark.parametrize(
    "asked",
    [
        {"model_type": ["llama"]},
        {"model_type": None},
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": -2},
        {"num_hidden_layers": 10**9},
        {"num_key_value_heads": 0},
        {"vocab_size": 0},
        {"vocab_size": 10**15},
        {"hidden_size": 10**12},
        {"hidden_act": "no such"},
        {"rope_parameters": {"rope_type": "no such", "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "linear", "factor": None, "rope_theta": 1e4}},
        {"rms_norm_eps": float("nan")},
        {"quantization_config": {}},
        {"transformers_weights": "other.safetensors"},
    ],
    ids=str,
)
def test_values_that_no_model_has(asked: dict[str, Any], folder: Path) -> None:
    configure(folder, **asked)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=re.escape(str(folder))):
        load_parent(str(folder))


def test_a_header_that_miscounts(folder: Path) -> None:
    file = folder / "model.safetensors"
    entries, data = header(file)
    entries[UP]["dtype"] = "F16"
    text = json.dumps(entries).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert f"{file}: has a damaged header: {UP} has more or fewer bytes" in refused(folder)


def test_a_link_that_leads_nowhere(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "gone")
    assert refused(folder).startswith(f"{folder / 'model.safetensors'}: is a link that leads nowhere")


def test_how_attention_is_computed_is_not_the_checkpoints(folder: Path) -> None:
    digest = load_parent(str(folder)).digest
    configure(folder, _attn_implementation="flash_attention_2", attn_implementation="flash_attention_2")
    assert load_parent(str(folder)).digest == digest


@pytest.mark.parametrize("key", ["pad_token_id", "bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_token_ids_without_an_embedding(name: str, key: str, folder: Path) -> None:
    configure(folder, name, **{key: 64})
    assert f"{folder / name}: {key} is 64, and vocab_size 64 has tokens 0 to 63" in refused(folder)
    configure(folder, name, **{key: [2, 99] if key == "eos_token_id" else -7})
    assert f"{folder / name}: {key} is" in refused(folder)


def test_minus_one_is_no_token(folder: Path) -> None:
    configure(folder, pad_token_id=-1)
    assert load_parent(str(folder)).shape.vocabulary == 64


def test_a_configuration_transformers_cannot_read(folder: Path) -> None:
    configure(folder, hidden_size="wide")
    assert refused(folder).startswith(f"{folder / 'config.json'}: cannot be read: ")
    configure(folder, hidden_size=32, num_attention_heads=0)
    assert refused(folder).startswith(f"{folder / 'config.json'}: cannot be read: ")


# --- code -----------------------------------------------------------------------------------------------------------


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def test_a_pickle_that_runs_code_is_not_run(folder: Path) -> None:
    ran = folder.with_name("CODE_RAN")
    file = pickled(folder, lambda weights: weights.update({"evil": Evil(ran)}))  # type: ignore[dict-item]
    said = refused(folder)
    assert said.startswith(f"{file}: is a pickle that holds more than tensors")
    file.write_bytes(pickle.dumps(Evil(ran)))
    assert str(file) in refused(folder)
    assert not ran.exists()


def test_a_pickle_of_the_old_format_loads(folder: Path) -> None:
    digest = load_parent(str(folder)).digest
    pickled(folder, _use_new_zipfile_serialization=False)
    assert load_parent(str(folder)).digest == digest


def with_code(folder: Path, **auto_map: str) -> Path:
    """A configuration that comes with code; returns the file that shows that it ran."""
    ran = folder / "CODE_RAN"
    for name in ("configuration_own", "modeling_own"):
        (folder / f"{name}.py").write_text(
            f"open({str(ran)!r}, 'w').close()\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
            "class OwnConfig(LlamaConfig):\n    model_type = 'llama'\n"
            "class OwnForCausalLM(LlamaForCausalLM):\n    pass\n"
        )
    configure(folder, auto_map=auto_map)
    return ran


def test_code_of_a_supported_family_is_passed_by(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own class loads it; nobody is asked, and nothing is run."""
    digest = load_parent(str(folder)).digest
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    ran = with_code(folder, **auto_map)
    assert load_parent(str(folder)).digest == digest
    assert not ran.exists()


def test_code_of_another_family_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    ran = with_code(folder, AutoConfig="configuration_own.OwnConfig")
    configure(folder, model_type="nemotron-nas", architectures=["DeciLMForCausalLM"])
    said = refused(folder)
    assert "model_type 'nemotron-nas' is not of a supported family; its own code (auto_map) is not run" in said
    assert "supported: gemma3_text, gpt2, gpt_neo, granite, llama, mistral, olmo2, phi3, qwen2, qwen3, smollm3" in said
    assert not ran.exists()


# --- the hub --------------------------------------------------------------------------------------------------------

_FROM_HUB = """
import sys
from blocklib.parent import load_parent
try:
    parent = load_parent(sys.argv[1])
except ValueError as error:
    print(type(error).__name__, error)
else:
    print(parent.source, parent.digest)
"""


def in_cache(home: Path, folder: Path, name: str) -> None:
    """The folder as the hub's cache keeps a repository."""
    cached = home / "hub" / f"models--{name.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    folder.rename(cached / "snapshots" / ("0" * 40))


def from_hub(home: Path, name: str) -> str:
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    asked = [sys.executable, "-c", _FROM_HUB, name]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_hub_id_is_looked_at_as_a_folder_is(folder: Path, tmp_path: Path) -> None:
    digest = load_parent(str(folder)).digest
    sharded(folder)
    configure(saved(tmp_path / "quantised"), quantization_config={"quant_method": "awq"})
    home = tmp_path / "hf"
    in_cache(home, folder, "someone/whole")
    in_cache(home, tmp_path / "quantised", "someone/quantised")
    assert from_hub(home, "someone/whole") == f"someone/whole {digest}"
    assert "quantization_config: its weights are quantised (awq)" in from_hub(home, "someone/quantised")
    assert "CheckpointError someone/absent: is no folder here, and the hub gives no such" in from_hub(
        home, "someone/absent"
    )


def test_a_path_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    assert folder_of(str(tmp_path / "gone")) == tmp_path / "gone"
