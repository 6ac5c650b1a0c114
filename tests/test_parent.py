"""A checkpoint of every family, loaded as our own model, is the same model."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SHARED
from parents import (
    FAMILIES,
    GPT,
    UP_TO_ROUNDING,
    child_of,
    every_kind,
    logits,
    parent_from,
    random_ids,
    random_model,
    random_parent,
)
from safetensors.torch import load_file, save_file
from test_assemble import greedy, greedy_by_hand
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTNeoConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from blocklib.block import Architecture
from blocklib.errors import CheckpointError, UnsupportedModelError
from blocklib.families import shape_of
from blocklib.kinds import parameters
from blocklib.parent import Parent, load_parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint, for a test to damage."""
    random_model(FAMILIES["llama"](num_hidden_layers=2)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_familys_own_class(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    random_model(FAMILIES[family]()).save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    parent = load_parent(str(tmp_path), dtype)
    ids = random_ids(parent, tokens=20)
    assert type(theirs).__name__.lower().startswith(family.removesuffix("_text").replace("_", ""))
    if family in UP_TO_ROUNDING and (family != "olmo2" or dtype == torch.bfloat16):
        tolerance = {"rtol": 0.02, "atol": 0.1} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(logits(parent.model, ids), logits(theirs, ids), **tolerance)
    else:
        assert torch.equal(logits(parent.model, ids), logits(theirs, ids))
    assert not any(parameter.requires_grad for parameter in parent.model.parameters())


def test_a_real_parent_of_gpt2s_layout() -> None:
    folder = SHARED / "parents/tinystories-instruct-3m-chat"
    if not folder.is_dir():
        pytest.skip("the GPT-Neo parent that lies beside the repository is not there")
    parent, theirs = load_parent(str(folder)), AutoModelForCausalLM.from_pretrained(folder)
    ids = random_ids(parent, tokens=200)
    torch.testing.assert_close(logits(parent.model, ids), logits(theirs, ids), rtol=1e-4, atol=1e-4)
    assert parameters(parent.architecture, parent.shape) == theirs.num_parameters()
    changed = ["skip+ffn256", "window9+linear", "linear+skip", "kv4+fuse(ffn512,ffn512)"]
    child = child_of(parent, " ".join([*changed, *["kv16+ffn512"] * 3]))
    assert torch.equal(greedy(child, ids[:, :20]), greedy_by_hand(child, ids[:, :20]))


@pytest.mark.parametrize("family", FAMILIES)
def test_shape_is_read_off(family: str) -> None:
    shape, gpt = random_parent(family).shape, family in GPT
    assert (shape.layers, shape.hidden, shape.heads, shape.ffn_width) == (6, 32, 8, 48)
    assert shape.kv_heads == (8 if gpt else 4)
    biased = ("llama", "granite", "olmo2", "gemma3_text")
    assert shape.head_dim == (4 if gpt or family in ("qwen2", "phi3", "granite", "smollm3", "olmo2") else 8)
    assert shape.tied == (family in ("qwen2", "gemma3_text"))
    assert (shape.qkv_bias, shape.o_bias) == (family in (*biased, "qwen2", "gpt2"), gpt or family in biased)
    assert (shape.mlp_bias, shape.qk_norm) == (gpt or family == "llama", family in ("qwen3", "olmo2", "gemma3_text"))
    assert shape.joint_qk_norm == (family == "olmo2")
    assert shape.norm_placement == {"olmo2": "after", "gemma3_text": "around"}.get(family, "before")
    local = ((0, 1, 3, 4), 5) if family == "gemma3_text" else ((), None)
    assert (shape.local_layers, shape.local_window) == local
    assert (shape.gated, shape.layer_norm, shape.positions) == (not gpt, gpt, 64 if gpt else 0)


@pytest.mark.parametrize("spelling", ["parent", "every kind", " ".join(["skip+skip"] * 6)])
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_by_arithmetic_are_those_counted(family: str, spelling: str) -> None:
    parent = random_parent(family)
    spelling = {"parent": str(parent.architecture), "every kind": every_kind(family)}.get(spelling, spelling)
    architecture = Architecture.parse(spelling)
    child = child_of(parent, str(architecture))
    # parameters() gives a tied head once, as memory holds it.
    assert parameters(architecture, parent.shape) == sum(parameter.numel() for parameter in child.parameters())


def test_the_parents_architecture() -> None:
    parent = random_parent()
    assert str(parent.architecture) == " ".join(["kv4+ffn48"] * 6)
    assert all(parent.own(choice) for choice in parent.architecture.choices())


def test_a_model_of_another_layout_is_refused() -> None:
    message = (
        "BloomConfig .*'bloom'.* supported: gemma3_text, gpt2, gpt_neo, granite, llama, mistral, olmo2, phi3, qwen2, "
        "qwen3, smollm3"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        shape_of(BloomConfig())
    with pytest.raises(UnsupportedModelError, match="GPT2Config: scale_attn_by_inverse_layer_idx is not supported"):
        shape_of(GPT2Config(scale_attn_by_inverse_layer_idx=True))


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(sliding_window=128),
        Phi3Config(sliding_window=2047),
        MistralConfig(
            max_position_embeddings=4096,
            sliding_window=4096,
            rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        ),
        GPTNeoConfig(window_size=256, max_position_embeddings=2048),
        Qwen2Config(num_hidden_layers=4, use_sliding_window=True, sliding_window=128, max_window_layers=2),
    ],
)
def test_sliding_windows_are_refused(config: PretrainedConfig) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{type(config).__name__}: a parent with sliding-window attention"):
        shape_of(config)


def test_a_window_that_holds_every_position_is_none() -> None:
    assert shape_of(Phi3Config(max_position_embeddings=4096, sliding_window=4096)).heads == 32


def test_heads_that_are_rotated_in_part_are_refused() -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}
    with pytest.raises(UnsupportedModelError, match=r"Phi3Config: heads of which a share of 0\.75 is rotated are not"):
        shape_of(Phi3Config(rope_parameters=rope))


@pytest.mark.parametrize("tokens", [20, 60])
def test_positions_of_phi_3_that_are_stretched_at_length(tokens: int, tmp_path: Path) -> None:
    """With the factors for short texts and with those for long ones, as the files of Phi-3.5 spell them."""
    random_model(FAMILIES["phi3"]()).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"]
    scaling = {"type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0]}
    config |= {"rope_theta": 1e4, "rope_scaling": scaling, "original_max_position_embeddings": 32, "sliding_window": 64}
    file.write_text(json.dumps(config))
    parent, theirs = load_parent(str(tmp_path)), AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = random_ids(parent, tokens=tokens)
    torch.testing.assert_close(logits(parent.model, ids), logits(theirs, ids))
    assert not torch.allclose(logits(random_parent("phi3").model, ids), logits(theirs, ids)), "as if not stretched"


@pytest.mark.parametrize("family", [Qwen2Config, Qwen3Config, SmolLM3Config])
def test_a_window_that_is_switched_off_is_none(family: type[PretrainedConfig]) -> None:
    assert shape_of(family(use_sliding_window=False, sliding_window=128, max_window_layers=2)).layers > 0


def test_a_damaged_weight_is_named(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, lambda weights: weights[name].view(-1)[5].fill_(torch.nan))
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite values"):
        load_parent(str(folder))


def test_a_damaged_matrix_goes_by_its_name_in_the_file(tmp_path: Path) -> None:
    random_model(FAMILIES["phi3"]()).save_pretrained(tmp_path)
    name = "model.layers.1.mlp.gate_up_proj.weight"
    rewrite(tmp_path, lambda weights: weights[name][3].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinite values"):
        load_parent(str(tmp_path))


def test_a_missing_weight_is_named(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        load_parent(str(folder))


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json: give a folder saved by save_pretrained"):
        load_parent(str(tmp_path))


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_parent(str(folder))


def test_a_configuration_of_another_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bloom"}))
    with pytest.raises(UnsupportedModelError, match="supported: gemma3_text"):
        load_parent(str(folder))


def test_the_digest_is_of_what_is_computed(folder: Path) -> None:
    digest = load_parent(str(folder)).digest
    moved = folder.rename(folder.with_name("elsewhere"))
    assert load_parent(str(moved)).digest == digest
    assert load_parent(str(moved), torch.bfloat16).digest != digest
    rewrite(moved, lambda weights: weights["model.norm.weight"][3].add_(1e-6))
    assert load_parent(str(moved)).digest != digest


def test_the_digest_knows_what_no_weight_shows() -> None:
    model = random_model(FAMILIES["llama"]())
    digest = parent_from(model).digest
    model.config.rms_norm_eps *= 2
    assert parent_from(model).digest != digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi3", "gemma3_text"])
def test_a_parent_travels_as_its_files(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """What a worker gets is small, and the same model to the bit: in float32, on weights of the files' own type."""
    random_model(FAMILIES[family]()).to(dtype).save_pretrained(tmp_path)
    parent = load_parent(str(tmp_path))
    ids = random_ids(parent)
    theirs = logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), ids)
    found = logits(parent.model, ids)
    torch.testing.assert_close(found, theirs)
    sent = pickle.dumps(parent)
    assert len(sent) < 30_000 < sum(tensor.nbytes for tensor in parent.weights.values())
    again = pickle.loads(sent).on("cpu")
    assert (again.source, again.digest, again.shape) == (parent.source, parent.digest, parent.shape)
    assert {tensor.dtype for tensor in again.weights.values()} == {dtype}
    assert torch.equal(found, logits(again.model, ids))
    assert torch.equal(found, logits(parent.whole(), ids))
    assert {parameter.dtype for parameter in parent.whole(torch.float64).parameters()} == {torch.float64}


def test_files_that_change_while_workers_read_them_are_named(folder: Path) -> None:
    sent = load_parent(str(folder))
    rewrite(folder, lambda weights: weights["model.norm.weight"].mul_(2))
    rewrite(folder, lambda weights: weights["lm_head.weight"].mul_(2))
    for read in (lambda: sent.on("cpu"), sent.whole):
        with pytest.raises(CheckpointError, match=r"model\.safetensors: is not the file that it was"):
            read()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is not there: every node that works on a parent"):
        sent.on("cpu")


def test_a_trained_parent_reads_its_text(trained_parent: Parent, text_ids: torch.Tensor) -> None:
    """The parent that other tests call trained is far better than chance."""
    found = logits(trained_parent.model, text_ids[:16])[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(found, text_ids[:16, 1:].flatten())
    assert loss < 0.7 * torch.tensor(float(trained_parent.shape.vocabulary)).log()


@pytest.mark.parametrize("family", ["phi3", "gpt2"])
def test_matrices_that_a_file_joins_are_tensors_of_their_own(family: str, tmp_path: Path) -> None:
    """Or what is saved of one would hold the others."""
    random_model(FAMILIES[family]()).save_pretrained(tmp_path)
    weights = load_parent(str(tmp_path)).layer_weights(0)
    storages = {weights[f"self_attn.{part}_proj.weight"].untyped_storage().data_ptr() for part in "qkv"}
    assert len(storages) == 3
