"""A parent's tensors are those of the model that its configuration describes, tied or not as its files are, and numbers
that the dtype it is served in can hold. Unusual but correct files are loaded as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, configure, pickled, refused, rewrite, saved
from parents import GPT, logits, random_ids
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from blocklib.checkpoint import inspect
from blocklib.errors import CheckpointError
from blocklib.families import positions_of, scaled_positions
from blocklib.loading import check_range, readable
from blocklib.parent import load_parent

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "model")


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
    assert said.startswith(f"{folder / 'model.safetensors'}: {HEAD} is [72, 32], and config.json says vocab_size: 64")
    pickled(folder)
    assert f"{HEAD} is [72, 32], and config.json makes it [64, 32]" in refused(folder)


def test_a_tensor_of_another_shape(folder: Path) -> None:
    configure(folder, intermediate_size=40)
    assert "is [32, 48], and config.json makes it [32, 40]" in refused(folder)
    pickled(folder)
    assert "is [32, 48], and config.json makes it [32, 40]" in refused(folder)


def test_a_tensor_left_over(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"score.weight": torch.ones(2, 32)}))
    assert f"{folder / 'model.safetensors'}: holds score.weight, which its config" in refused(folder)


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
    # As a file has it, nothing filled in.
    assert scaled_positions(4096, rope) == positions


def test_positions_of_the_old_spelling(folder: Path) -> None:
    configure(folder, rope_parameters=None, rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 2.0})
    checkpoint = inspect(folder)
    assert positions_of(readable(checkpoint).config) == checkpoint.positions == 128


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
