"""Children with matrices in fp8 and int4: exported, loaded by transformers' own quantizer, and the same numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import tokenizer
from parents import FAMILIES, child_of, random_model, random_parent
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from blocklib.block import SKIP, Architecture, Choice
from blocklib.formats.compressed_types import COMPRESSED
from blocklib.formats.subblocks import tensor_shapes
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, child_config, load_parent, model_with
from blocklib.precisions.compressed_child import compressed_child, part_formats
from blocklib.shape import Shape
from nas.errors import UnsupportedExportError
from nas.export.decilm import export_decilm
from nas.export.formats import Target, exporter
from nas.export.parent_settings import settings_of
from nas.export.plain import export_plain
from nas.export.rounded import RoundedMatrices, rounded_once
from nas.export.verify import TOLERANCE, logits_of, probe_ids

pytest.importorskip("compressed_tensors")

SIZES: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
                         "intermediate_size": 96}  # fmt: skip
SHAPES = "skip+ffn96 kv2+skip skip+ffn64 kv1+fuse(ffn96,ffn32) kv4+ffn96"
MIXED = "skip+ffn96@int4 kv2@fp8+skip skip+ffn64 kv1@int4+fuse(ffn96,ffn32)@fp8 kv4@bf16+ffn96@int4"
PLAIN = "kv2+ffn64 skip+skip kv2+ffn64 kv2+ffn64 skip+skip kv2+ffn64"


@pytest.fixture(scope="module")
def parent() -> Parent:
    return random_parent("llama", **SIZES, attention_bias=False, mlp_bias=False)


def in_precisions(child: PuzzleNasForCausalLM, spelling: str, parent: Parent) -> PuzzleNasForCausalLM:
    """The same weights under an architecture that names precisions."""
    config = child_config(child.config, Architecture.parse(spelling), parent.shape)
    return model_with(config, child.state_dict())


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)


def layer_bytes(folder: Path) -> int:
    held = tensors_in(folder)
    return sum(each.numel() * each.element_size() for name, each in held.items() if name.startswith("model.layers."))


def part_bytes(part: Choice, shape: Shape, bytes_per_value: int) -> int:
    """By arithmetic, the bytes of all tensors of a subblock; `bytes_per_value`: of a number in no format."""
    formats = part_formats(part, shape)
    return sum(
        formats[name].matrix_bytes(*size) if name in formats else bytes_per_value * torch.Size(size).numel()
        for name, size in tensor_shapes(part, shape).items()
    )


@torch.no_grad()
def stock_logits(folder: Path, **how: Any) -> torch.Tensor:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **how)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    logits: torch.Tensor = model(probe_ids(model.config.vocab_size), use_cache=False).logits
    return logits


@pytest.mark.parametrize("precision", COMPRESSED)
def test_a_child_of_any_sizes_is_written_as_decilm(precision: str, parent: Parent, tmp_path: Path) -> None:
    child, out = child_of(parent, SHAPES), tmp_path / "out"
    exported = exporter(Target("decilm", precision))(child, tokenizer(), out, "# A child", None)
    assert exported.max_logit_difference <= TOLERANCE
    assert any(precision in note and "compressed-tensors" in note for note in exported.notes)
    held = compressed_child(child, precision).model
    assert (logits_of(held, probe_ids(64)) - logits_of(child, probe_ids(64))).abs().max() > 100 * TOLERANCE
    assert torch.allclose(stock_logits(out, trust_remote_code=True), logits_of(held, probe_ids(64)), atol=TOLERANCE)
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    assert section["format"] == {"fp8": "float-quantized", "int4": "pack-quantized"}[precision]
    assert "model.layers.0.self_attn.q_proj" in section["ignore"], "the attention of zeros is not the child's"


def test_every_subblock_has_its_own_precision(parent: Parent, tmp_path: Path) -> None:
    """Bytes by arithmetic are the file's, but for the attention of zeros in the first layer."""
    child = in_precisions(child_of(parent, SHAPES), MIXED, parent)
    out = tmp_path / "out"
    exported = export_decilm(child, tokenizer(), out, "# A child", rounded=RoundedMatrices())
    assert exported.max_logit_difference <= TOLERANCE
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["format"] == "mixed-precision"
    parts = [part for choice in Architecture.parse(MIXED).choices() for part in choice.parts if part.what != SKIP]
    zeros = part_bytes(Choice.parse("L0.attention=kv1"), parent.shape, 4)
    assert layer_bytes(out) == sum(part_bytes(part, parent.shape, 4) for part in parts) + zeros
    types = {name: tensor.dtype for name, tensor in tensors_in(out).items()}
    assert types["model.layers.0.mlp.up_proj.weight_packed"] == torch.int32
    assert types["model.layers.1.self_attn.o_proj.weight"] == torch.float8_e4m3fn
    assert types["model.layers.1.mlp.up_proj.weight"] == torch.float32


@pytest.mark.parametrize(
    ("precision", "family"),
    [("fp8", "llama"), ("int4", "qwen3"), ("fp8", "olmo2"), ("int4", "granite"), ("fp8", "gemma3_text")],
)
def test_a_plain_child_loads_with_no_flag_and_no_code(precision: str, family: str, tmp_path: Path) -> None:
    random_model(FAMILIES[family](**SIZES)).save_pretrained(tmp_path / "parent")
    parent, settings = load_parent(str(tmp_path / "parent")), settings_of(str(tmp_path / "parent"))
    child, out = child_of(parent, PLAIN), tmp_path / "out"
    exported = exporter(Target("plain", precision))(child, tokenizer(), out, "# A child", settings)
    assert exported.max_logit_difference <= TOLERANCE
    held = compressed_child(child, precision).model
    assert torch.allclose(stock_logits(out), logits_of(held, probe_ids(64)), atol=TOLERANCE)
    assert not list(out.glob("*.py"))
    plain = out.with_name("plain")
    export_plain(child, tokenizer(), plain, "# A child", settings)
    assert layer_bytes(out) < 0.45 * layer_bytes(plain)


@pytest.mark.parametrize(
    ("family", "named"),
    [("gpt2", "matrices of GPT-2's layout are not"), ("phi3", "a phi3 checkpoint stores queries, keys and")],
)
def test_a_family_without_such_matrices_is_refused(family: str, named: str, tmp_path: Path) -> None:
    random_model(FAMILIES[family]()).save_pretrained(tmp_path / "parent")
    parent, settings = load_parent(str(tmp_path / "parent")), settings_of(str(tmp_path / "parent"))
    with pytest.raises(UnsupportedExportError, match=named):
        exporter(Target("plain", "fp8"))(parent.whole(), tokenizer(), tmp_path / "out", "# A child", settings)
    assert not (tmp_path / "out").exists()


def test_a_child_served_in_bfloat16_is_rounded_once(parent: Parent, tmp_path: Path) -> None:
    """From the weights as they are, not from what bfloat16 leaves of them."""
    child = child_of(parent, SHAPES)
    rounded = rounded_once(child, RoundedMatrices("int4"))
    direct = compressed_child(child, "int4").rows
    child.to(torch.bfloat16)
    out = tmp_path / "out"
    exporter(Target("decilm", "int4"), rounded)(child, tokenizer(), out, "# A child", None)
    name = "model.layers.2.mlp.down_proj.weight"
    (own,) = [key for key in direct if key.endswith("layers.3.mlp.down_proj.weight")]
    packed = tensors_in(out)[f"{name}_packed"].view(torch.uint8)
    assert torch.equal(packed, direct[own][:, : packed.shape[1]])
    assert tensors_in(out)["model.embed_tokens.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("format", "precision", "said"),
    [
        ("hf", "fp8", "format hf has the type"),
        ("gguf", "int4", "one of formats decilm and plain"),
        ("decilm", "q8_0", "format decilm has fp8, int4"),
    ],
)
def test_a_precision_that_a_format_lacks_is_refused(format: str, precision: str, said: str) -> None:
    with pytest.raises(UnsupportedExportError, match=said):
        exporter(Target(format, precision))


def test_rows_without_whole_groups_are_refused_by_name(tmp_path: Path) -> None:
    child = child_of(random_parent("llama", **SIZES | {"intermediate_size": 48}, attention_bias=False, mlp_bias=False),
                     "kv4+ffn48 " * 5 + "kv4+ffn48")  # fmt: skip
    with pytest.raises(UnsupportedExportError, match=r"L0\.ffn=ffn48@int4: mlp\.down_proj\.weight.*rows have 48"):
        exporter(Target("decilm", "int4"))(child, tokenizer(), tmp_path / "out", "# A child", None)
    assert not (tmp_path / "out").exists()
