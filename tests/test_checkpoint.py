"""A parent that is not what its files say, or that no search can use: refused by file, cause and remedy, before it is
loaded; and what looks odd and is right, loaded as it is."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import LFS_POINTER, Tensors, configure, header, pickled, rewrite, saved, sharded
from parents import GPT, logits, random_ids
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from blocklib.checkpoint import CheckpointError, inspect
from blocklib.family import UnsupportedModel, positions_of
from blocklib.hub import folder_of
from blocklib.loading import check_range, readable
from blocklib.parent import load_parent

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP = "model.layers.1.mlp.up_proj.weight"
Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "model")


def refused(folder: Path) -> str:
    """What is said of a checkpoint that is looked at and not loaded."""
    with pytest.raises((CheckpointError, UnsupportedModel, FileNotFoundError)) as error:
        readable(inspect(folder))
    assert "\n" not in str(error.value)
    # Loading it must not get past that.
    with pytest.raises(type(error.value)):
        load_parent(str(folder))
    return str(error.value)


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
        ("config.json", "[1, 2]", "holds a list where keys and values should be"),
        ("config.json", '{"a": ' * 20_000, "nested too deep"),
        ("config.json", "{}", "has no model_type"),
        ("generation_config.json", "<!DOCTYPE html>", "is not JSON"),
        ("model.safetensors", "<!DOCTYPE html>" * 9, "is no safetensors file"),
        ("pytorch_model.bin", "<!DOCTYPE html>" * 9, "is no file of torch's"),
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
    assert f"{index}: names model-00002-of-00003.safetensors, not there" in refused(folder)


def test_an_index_and_a_shard_that_disagree(folder: Path) -> None:
    index = sharded(folder)
    said = json.loads(index.read_text())
    said["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(said))
    expected = f"{index}: says that model-00001-of-00002.safetensors holds model.extra.weight, and it does not"
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


# --- the model and its tensors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neo"])
def test_more_layers_than_are_counted(family: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, family)
    key = {"gpt2": "n_layer", "gpt_neo": "num_layers"}.get(family, "num_hidden_layers")
    configure(folder, **{key: 1})
    said = refused(folder)
    held = 6 if family == "gpt_neo" else 2
    assert said.startswith(f"{folder / 'config.json'}: counts 1 layers, and the weights beside it hold {held}")
    assert ("transformer.h.1." if family in GPT else "model.layers.1.") in said


def test_fewer_layers_than_are_counted(folder: Path) -> None:
    configure(folder, num_hidden_layers=4)
    assert "counts 4 layers, and the weights beside it hold 2" in refused(folder)
    pickled(folder)
    assert "counts 4 layers, and the weights beside it hold 2" in refused(folder)


def test_a_stale_vocabulary(folder: Path) -> None:
    def grown(weights: Tensors) -> None:
        for name in (EMBEDDING, HEAD):
            weights[name] = torch.cat([weights[name], torch.zeros(8, 32)])

    rewrite(folder, grown)
    said = refused(folder)
    assert said.startswith(f"{folder / 'model.safetensors'}: {HEAD} is [72, 32], and config.json makes it [64, 32]")
    assert "its vocab_size is 64, and the files hold 72 embeddings" in said


def test_a_tensor_of_another_shape(folder: Path) -> None:
    configure(folder, intermediate_size=40)
    assert "is [32, 48], and config.json makes it [32, 40]" in refused(folder)
    pickled(folder)
    assert "is [32, 48], and config.json makes it [32, 40]" in refused(folder)


def test_a_tensor_left_over(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"score.weight": torch.ones(2, 32)}))
    assert f"{folder / 'model.safetensors'}: holds score.weight, which the model" in refused(folder)


def test_a_bias_the_configuration_leaves_out(folder: Path) -> None:
    configure(folder, mlp_bias=False)
    assert "holds model.layers.0.mlp.down_proj.bias" in refused(folder)


def test_a_tensor_missing(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.pop(UP))
    assert f"the checkpoint lacks {UP}" in refused(folder)
    pickled(folder)
    assert f"the checkpoint lacks {UP}" in refused(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neo"])
def test_buffers_of_old_transformers_are_harmless(family: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, family)
    digest = load_parent(str(folder)).digest
    causal = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
    old = {
        "llama": {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(2)},
        "gpt2": {"transformer.h.0.attn.bias": causal, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)},
        "gpt_neo": {
            "transformer.h.0.attn.attention.bias": causal,
            "transformer.h.0.attn.attention.masked_bias": torch.tensor(-1e9),
        },
    }[family]
    rewrite(folder, lambda weights: weights.update(old))
    assert load_parent(str(folder)).digest == digest
    pickled(folder)
    assert load_parent(str(folder)).digest == digest


def test_a_tied_model_saved_without_its_head(tmp_path: Path) -> None:
    """As GPT-2's first checkpoints are."""
    folder = saved(tmp_path, "gpt2", tie_word_embeddings=True)
    digest = load_parent(str(folder)).digest

    def shorter(weights: Tensors) -> None:
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)

    rewrite(folder, shorter)
    assert load_parent(str(folder)).digest == digest


def test_a_model_without_its_head_that_is_not_tied(folder: Path) -> None:
    def shorter(weights: Tensors) -> None:
        weights.pop(HEAD)
        for name in list(weights):
            weights[name.removeprefix("model.")] = weights.pop(name)

    rewrite(folder, shorter)
    assert f"the checkpoint lacks {HEAD}" in refused(folder)


# --- tied or not ----------------------------------------------------------------------------------------------------


def computed(folder: Path, head: torch.Tensor) -> torch.Tensor:
    """The logits that `head` gives, by transformers' own layers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        hidden = model.base_model(ids, use_cache=False).last_hidden_state
    return hidden @ head.T


@pytest.mark.parametrize("is_pickled", [False, True])
def test_a_head_of_its_own_is_used_whatever_the_flag_says(is_pickled: bool, folder: Path) -> None:
    configure(folder, tie_word_embeddings=True)
    head = load_file(folder / "model.safetensors")[HEAD]
    if is_pickled:
        pickled(folder)
    parent = load_parent(str(folder))
    ids = torch.arange(12).unsqueeze(0)
    assert not parent.shape.tied
    assert not parent.model.config.tie_word_embeddings
    assert "tie_word_embeddings: true, and the weights hold a head of its own" in parent.notes[0]
    torch.testing.assert_close(logits(parent.model, ids), computed(folder, head))


@pytest.mark.parametrize("is_pickled", [False, True])
def test_a_head_that_is_the_embedding_twice_is_tied(is_pickled: bool, folder: Path) -> None:
    configure(folder, tie_word_embeddings=True)
    rewrite(folder, lambda weights: weights.update({HEAD: weights[EMBEDDING].clone()}))
    if is_pickled:
        pickled(folder)
    parent = load_parent(str(folder))
    assert (parent.shape.tied, parent.notes) == (True, ())


def test_a_file_without_a_head_is_tied_whatever_the_flag_says(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.pop(HEAD))
    embedding = load_file(folder / "model.safetensors")[EMBEDDING]
    parent = load_parent(str(folder))
    ids = torch.arange(12).unsqueeze(0)
    assert parent.shape.tied
    assert "tie_word_embeddings: false, and the weights hold no head" in parent.notes[0]
    torch.testing.assert_close(logits(parent.model, ids), computed(folder, embedding))


def test_a_tied_file_may_hold_the_head_alone(folder: Path) -> None:
    configure(folder, tie_word_embeddings=True)
    rewrite(folder, lambda weights: weights.pop(EMBEDDING))
    parent = load_parent(str(folder))
    assert torch.equal(parent.model.lm_head.weight, load_file(folder / "model.safetensors")[HEAD])
    assert torch.equal(parent.model.model.embed_tokens.weight, parent.model.lm_head.weight)


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
    assert "supported: gpt2, gpt_neo, llama, mistral, qwen2, qwen3" in said
    assert not ran.exists()


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_pickled", [False, True])
def test_a_weight_that_a_dtype_cannot_hold(is_pickled: bool, folder: Path) -> None:
    rewrite(folder, lambda weights: weights[UP].view(-1)[7].fill_(-1e5))
    if is_pickled:
        pickled(folder)
    checkpoint = inspect(folder)
    with pytest.raises(CheckpointError, match=rf"{UP} holds 100000, and float16 ends at 65504") as error:
        check_range(checkpoint, torch.float16)
    assert "bfloat16" in error.value.remedy
    check_range(checkpoint, torch.bfloat16)
    check_range(checkpoint, torch.float32)


def test_the_largest_weight_that_float16_holds(folder: Path) -> None:
    # 65,519 is rounded to 65,504; 65,520 to infinity.
    rewrite(folder, lambda weights: weights[UP].view(-1)[7].fill_(65_519.0))
    check_range(inspect(folder), torch.float16)
    rewrite(folder, lambda weights: weights[UP].view(-1)[7].fill_(65_520.0))
    with pytest.raises(CheckpointError, match="65520"):
        check_range(inspect(folder), torch.float16)


def test_weights_in_bfloat16_go_past_float16(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({UP: (weights[UP] + 1e6).bfloat16()}))
    with pytest.raises(CheckpointError, match="float16 ends at"):
        check_range(inspect(folder), torch.float16)


def test_nan_is_named_before_loading(folder: Path) -> None:
    rewrite(folder, lambda weights: weights[UP].view(-1)[7].fill_(torch.nan))
    with pytest.raises(CheckpointError, match=f"{UP} holds NaN"):
        check_range(inspect(folder), torch.float16)
    with pytest.raises(CheckpointError, match=f"{UP} holds NaN"):
        load_parent(str(folder))


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "default"}, 4096),
        ({"rope_type": "linear", "factor": 4.0}, 16_384),
        ({"rope_type": "dynamic", "factor": 2.0}, 8192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16_384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        # Llama 3.1 and 3.2: the length is the stretched one already, whatever the factor.
        ({"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 4096}, 32_768),
    ],
)
def test_positions_of_scaled_rope(rope: dict[str, Any], positions: int) -> None:
    ends = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if rope["rope_type"] == "llama3" else {}
    config = LlamaConfig(max_position_embeddings=4096, rope_parameters={"rope_theta": 1e4} | rope | ends)
    assert positions_of(config) == positions


def test_positions_of_the_old_spelling(folder: Path) -> None:
    configure(folder, rope_parameters=None, rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 2.0})
    assert positions_of(readable(inspect(folder)).config) == 128


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


# --- the second line of defence -------------------------------------------------------------------------------------


def test_what_a_configuration_holds_that_we_do_not_know_shows_in_the_logits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' class is held against ours on every load."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    def otherwise(self: Any, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x)))
        return found

    monkeypatch.setattr(LlamaMLP, "forward", otherwise)
    with pytest.raises(CheckpointError, match="LlamaForCausalLM computes other logits"):
        load_parent(str(folder))


def test_random_ids_are_read_alike(folder: Path) -> None:
    parent = load_parent(str(folder))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = random_ids(parent, tokens=40)
    assert torch.equal(logits(parent.model, ids), logits(theirs, ids))
