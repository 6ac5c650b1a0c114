"""Exports as plain checkpoints of the parent's family, loaded by transformers alone and by what builds on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EMBEDDED
from parents import FAMILIES, child_of, random_model
from safetensors.torch import load_file
from test_export import CARD, tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from blocklib.block import SKIP, Block, Choice, Subblock
from blocklib.families import family_names, own_names, shape_of
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, load_parent
from nas.errors import ExportMismatchError, UnsupportedExportError
from nas.export.exported import Exported
from nas.export.formats import check_format
from nas.export.hf import export_hf
from nas.export.parent_settings import ParentSettings, settings_of
from nas.export.plain import export_plain
from nas.export.verify import TOLERANCE, logits_of, probe_ids

__all__ = ["tokenizer"]


def saved(folder: Path, config: PretrainedConfig) -> tuple[Parent, ParentSettings]:
    random_model(config).save_pretrained(folder)
    return load_parent(str(folder)), settings_of(str(folder))


def plain_child(parent: Parent) -> PuzzleNasForCausalLM:
    """Two blocks dropped, narrower FFNs, and fewer KV heads where the family has them."""
    block = f"kv{parent.shape.heads if parent.shape.layer_norm else 2}+ffn16"
    return child_of(parent, f"{block} skip+skip {block} {block} skip+skip {block}")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Parent, ParentSettings]:
    return saved(tmp_path_factory.mktemp("llama"), FAMILIES["llama"](vocab_size=272))


@pytest.fixture(scope="module")
def embedded_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[PuzzleNasForCausalLM, Path]:
    """A plain child of the parent in the package, and its export."""
    parent = load_parent(str(EMBEDDED))
    block = f"kv{parent.shape.kv_heads}+ffn{parent.shape.ffn_width // 2}"
    child = child_of(parent, " ".join(["skip+skip" if layer == 1 else block for layer in range(parent.shape.layers)]))
    out = tmp_path_factory.mktemp("embedded") / "out"
    export_plain(child, AutoTokenizer.from_pretrained(EMBEDDED), out, CARD, settings_of(str(EMBEDDED)))
    return child, out


def greedy(model: Any, ids_BT: Tensor) -> list[list[int]]:
    mask_BT = torch.ones_like(ids_BT)
    new: Tensor = model.generate(ids_BT, attention_mask=mask_BT, max_new_tokens=12, do_sample=False, pad_token_id=0)
    return new[:, ids_BT.shape[1] :].tolist()


# Loaded by stock transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_child_of_every_family_loads_with_no_code_of_ours(
    family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    parent, settings = saved(tmp_path / "parent", FAMILIES[family](vocab_size=272))
    child, out = plain_child(parent), tmp_path / "out"
    exported = export_plain(child, tokenizer, out, CARD, settings)
    assert exported.max_logit_difference <= TOLERANCE
    told = {
        "smollm3": ("Layers without positions are not every 2th any more",),
        "gemma3_text": ("Layers that see all tokens are not every 6th",),
    }.get(family, ())
    assert tuple(note.partition(":")[0] for note in exported.notes) == told
    assert not list(out.glob("*.py"))
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == family
    assert config["architectures"] == settings.config.architectures
    assert "auto_map" not in config
    assert "per_layer_config" not in config
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.num_hidden_layers == 4
    with torch.no_grad():
        logits = loaded.float()(probe_ids(272)).logits
    assert torch.allclose(logits, logits_of(child, probe_ids(272)), atol=TOLERANCE)
    # A plain child is a parent like any other.
    assert load_parent(str(out)).shape.ffn_width == 16


@pytest.mark.parametrize("export", [export_plain, export_hf])
def test_factors_of_phi_3s_positions_are_carried(
    export: Callable[..., Exported], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    factors = {"short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0], "original_max_position_embeddings": 32}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    parent, settings = saved(tmp_path / "parent", FAMILIES["phi3"](vocab_size=272, rope_parameters=rope))
    exported = export(plain_child(parent), tokenizer, tmp_path / "out", CARD, settings)
    assert exported.max_logit_difference <= TOLERANCE
    written = json.loads((tmp_path / "out/config.json").read_text())["rope_parameters"]
    assert {name: written[name] for name in rope} == rope


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_a_family_come_back_from_ours(family: str) -> None:
    model = random_model(FAMILIES[family]())
    own = model.state_dict()
    back = family_names(family, own_names(family, own, shape_of(model.config)))
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_tied_as_the_parent_has_it(tied: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    parent, settings = saved(tmp_path / "parent", FAMILIES["qwen3"](vocab_size=272, tie_word_embeddings=tied))
    export_plain(plain_child(parent), tokenizer, tmp_path / "out", CARD, settings)
    assert ("lm_head.weight" in load_file(tmp_path / "out/model.safetensors")) == (not tied)
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] == tied


def test_the_card_loads_it_without_a_flag(embedded_export: tuple[PuzzleNasForCausalLM, Path]) -> None:
    _, out = embedded_export
    card = (out / "README.md").read_text()
    assert "trust_remote_code" not in card
    assert "custom_code" not in card
    assert "vllm serve FOLDER" in card
    assert card.startswith("---\n")
    assert "license: apache-2.0" in card


def test_the_dtype_is_the_child_s(
    llama: tuple[Parent, ParentSettings], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    child = plain_child(llama[0])
    child.to(torch.bfloat16)
    export_plain(child, tokenizer, tmp_path / "out", CARD, llama[1])
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_generation_settings_are_the_parent_s(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    random_model(FAMILIES["llama"](vocab_size=272)).save_pretrained(tmp_path / "parent")
    asked = {"do_sample": True, "temperature": 0.5, "use_cache": False}
    (tmp_path / "parent/generation_config.json").write_text(json.dumps(asked))
    exported = export_plain(
        plain_child(load_parent(str(tmp_path / "parent"))), tokenizer, tmp_path / "out", CARD,
        settings_of(str(tmp_path / "parent")),
    )  # fmt: skip
    written = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert written["temperature"] == 0.5
    assert "use_cache" not in written
    assert any("KV cache" in note for note in exported.notes)


def test_half_layers_that_make_whole_ones_are_packed_together(
    llama: tuple[Parent, ParentSettings], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    child = child_of(llama[0], "kv4+ffn48 kv4+skip skip+ffn48 skip+skip skip+skip kv4+ffn48")
    export_plain(child, tokenizer, tmp_path / "out", CARD, llama[1])
    assert json.loads((tmp_path / "out/config.json").read_text())["num_hidden_layers"] == 3


# Refused


@pytest.mark.parametrize(
    ("spelling", "named"),
    [
        ("kv4+ffn48 kv4+ffn16 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48", "L1.ffn=ffn16"),
        ("kv4+ffn48 kv4+ffn48 kv2+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48", "L2.attention=kv2"),
        ("kv4+ffn48 skip+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48", "L1.ffn=ffn48"),
        ("kv4+ffn48 kv4+ffn48 kv4+skip kv4+ffn48 kv4+ffn48 kv4+ffn48", "L3.attention=kv4"),
        ("kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+skip", "L5.attention=kv4"),
        ("linear+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48", "L0.attention=linear"),
        ("window8+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48", "L0.attention=window8"),
        ("kv4+linear kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48", "L0.ffn=linear"),
        ("kv4+topk16 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48", "L0.ffn=topk16"),
        ("kv4+fuse(ffn48,ffn48) kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48", "L0.ffn=fuse(ffn48,ffn48)"),
        ("kv4+ffn48|kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48 kv4+ffn48", "kv4+ffn48|kv4+ffn48"),
        ("skip+skip skip+skip skip+skip skip+skip skip+skip skip+skip", "no layer left"),
    ],
)
def test_what_a_plain_checkpoint_cannot_carry_is_refused_by_name(
    spelling: str, named: str, llama: tuple[Parent, ParentSettings], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UnsupportedExportError) as refused:
        export_plain(child_of(llama[0], spelling), tokenizer, tmp_path / "out", CARD, llama[1])
    assert named in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_family_without_kv_heads_is_refused_before_any_work(tmp_path: Path) -> None:
    parent, _ = saved(tmp_path, FAMILIES["gpt2"](vocab_size=272))
    with pytest.raises(UnsupportedExportError, match="as many KV heads as heads, 8"):
        check_format("plain", [Choice(0, "attention", Subblock("kv", "2"))], parent.model.config)
    check_format("plain", [Choice(0, "block", Block(SKIP, SKIP))], parent.model.config)


def test_a_checkpoint_that_is_not_the_child_is_refused(
    llama: tuple[Parent, ParentSettings], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The parent's file says another RoPE than the child computes with."""
    parent, settings = llama
    child = plain_child(parent)
    child.config.rope_parameters = {"rope_type": "default", "rope_theta": 3.0}
    with pytest.raises(ExportMismatchError, match="logits"):
        export_plain(child, tokenizer, tmp_path / "out", CARD, settings)
    assert not (tmp_path / "out").exists()
