"""GGUF files as bytes: which tensors, of which type, in which layers. The engine runs in test_gguf_cases.py."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from parents import child_of, random_parent

from blocklib.block import SKIP, Architecture, Choice
from blocklib.errors import UnsupportedFormatError
from blocklib.formats.gguf import PRECISIONS, gguf_bytes, gguf_fixed_bytes, write_gguf, write_random_gguf
from blocklib.formats.gguf_types import quantise, stored_bytes, tensor_type
from blocklib.formats.gguf_vocabulary import dummy_vocabulary
from blocklib.formats.reblock import Needs, is_linear, reblock
from blocklib.parent import Parent
from cost_models.analytic import fixed_cost
from cost_models.scenario import Scenario

SIZES = {
    "hidden_size": 64,
    "head_dim": 16,
    "intermediate_size": 96,
    "attention_bias": False,
    "mlp_bias": False,
    "num_hidden_layers": 4,
}
UNPADDED = "kv2+ffn96 linear+ffn32 skip+ffn33 kv1+ffn7"


@pytest.fixture(scope="module")
def llama() -> Parent:
    return random_parent("llama", **SIZES)


@pytest.fixture(scope="module")
def tied() -> Parent:
    return random_parent("llama", **SIZES, tie_word_embeddings=True)


def tensors_of(path: Path) -> dict[str, tuple[str, int, tuple[int, ...]]]:
    """Type, bytes and shape of each."""
    return {
        tensor.name: (tensor.tensor_type.name, int(tensor.n_bytes), tuple(int(size) for size in tensor.shape))
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_file_holds_the_bytes_that_arithmetic_promises(
    llama: Parent, tied: Parent, precision: str, tmp_path: Path
) -> None:
    for parent in (llama, tied):
        architecture = Architecture.parse(UNPADDED)
        write_random_gguf(tmp_path / "random.gguf", parent.model.config, architecture, precision)
        promised = gguf_fixed_bytes(parent.shape, precision) + sum(
            gguf_bytes(choice, parent.shape, precision) for choice in architecture.choices()
        )
        assert sum(size for _, size, _ in tensors_of(tmp_path / "random.gguf").values()) == promised


@pytest.mark.parametrize("precision", ["q8_0", "q4_0", "q4_k"])
def test_a_pass_reads_the_head_in_its_own_type(llama: Parent, tied: Parent, precision: str, tmp_path: Path) -> None:
    scenario = Scenario("cpu", precision, batch=1, prompt_tokens=8, generated_tokens=2, engine="llama_cpp")
    for parent, head in ((llama, "output.weight"), (tied, "token_embd.weight")):
        write_random_gguf(tmp_path / "random.gguf", parent.model.config, Architecture.parse(UNPADDED), precision)
        found = tensors_of(tmp_path / "random.gguf")
        read = found[head][1] + found["output_norm.weight"][1]
        cost = fixed_cost(parent.shape, scenario)
        assert (cost.prefill_bytes, cost.decode_bytes) == (read, read)


def test_a_random_model_has_the_tensors_and_keys_of_a_real_one(llama: Parent, tmp_path: Path) -> None:
    spelling = "skip+ffn96 kv2+skip linear+linear skip+skip"
    child = child_of(llama, spelling)
    write_gguf(tmp_path / "real.gguf", child, "q8_0", dummy_vocabulary(64), {"name": "random"})
    write_random_gguf(tmp_path / "random.gguf", llama.model.config, Architecture.parse(spelling), "q8_0")
    assert tensors_of(tmp_path / "real.gguf") == tensors_of(tmp_path / "random.gguf")
    real, random = (gguf.GGUFReader(tmp_path / f"{name}.gguf").fields for name in ("real", "random"))
    assert {name: field.contents() for name, field in real.items()} == {
        name: field.contents() for name, field in random.items()
    }


def test_parts_of_zeros_come_on_top(llama: Parent, tmp_path: Path) -> None:
    """An FFN of zeros where a mixer has none, an attention of zeros where the first layer has none."""
    architecture = Architecture.parse("skip+ffn96 kv2+skip linear+linear kv4+ffn96")
    write_random_gguf(tmp_path / "padded.gguf", llama.model.config, architecture, "f32")
    found = tensors_of(tmp_path / "padded.gguf")
    promised = gguf_fixed_bytes(llama.shape, "f32") + sum(
        gguf_bytes(choice, llama.shape, "f32") for choice in architecture.choices()
    )
    hidden, head_dim = llama.shape.hidden, llama.shape.head_dim
    no_ffn, no_attention = 3 * hidden * 32 + hidden, 4 * hidden * head_dim + hidden
    assert sum(size for _, size, _ in found.values()) == promised + 4 * (3 * no_ffn + no_attention)
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "padded.gguf").tensors}
    assert not reader["blk.0.attn_output.weight"].data.any()
    assert not reader["blk.1.ffn_down.weight"].data.any()


def test_types_are_those_that_llama_cpp_would_choose() -> None:
    assert tensor_type((64,), "q4_0").name == "F32"
    assert tensor_type((8, 512), "q4_k").name == "Q4_K"
    fallbacks = {"q2_k": "Q4_0", "q3_k": "Q4_0", "q4_k": "Q5_0", "q5_k": "Q5_1", "q6_k": "Q8_0"}
    assert {precision: tensor_type((8, 576), precision).name for precision in fallbacks} == fallbacks
    assert tensor_type((8, 48), "q4_0").name == "F16"
    assert tensor_type((8, 512), "q4_0", is_head=True).name == "Q6_K"
    assert tensor_type((8, 576), "q4_1", is_head=True).name == "Q8_0"
    assert tensor_type((8, 512), "q8_0", is_head=True).name == "Q8_0"
    assert tensor_type((8, 512), "f16", is_head=True).name == "F16"
    with pytest.raises(UnsupportedFormatError, match=r"no precision 'q4_k_m'.*q4_k"):
        tensor_type((8, 512), "q4_k_m")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_quantising_loses_no_more_than_the_precision_costs(precision: str) -> None:
    values = np.random.default_rng(1).standard_normal((16, 512), dtype=np.float32)
    type = tensor_type(values.shape, precision)
    stored = quantise(values, type)
    assert stored.nbytes == stored_bytes(values.shape, type)
    read = gguf.dequantize(stored, type).reshape(values.shape)
    bits = 8 * stored.nbytes / values.size
    assert np.sqrt(np.mean((read - values) ** 2)) < 2.5 * 2.0 ** -min(bits - 1, 8)


@pytest.mark.parametrize("head_dim", [8, 16])
def test_rows_of_queries_are_interleaved(head_dim: int, tmp_path: Path) -> None:
    parent = random_parent("llama", **SIZES | {"head_dim": head_dim})
    write_gguf(tmp_path / "model.gguf", parent.model, "f32", dummy_vocabulary(64))
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    ours = parent.layer_weights(0)["self_attn.q_proj.weight"]
    first_head = torch.from_numpy(stored["blk.0.attn_q.weight"].copy())[:head_dim]
    assert torch.equal(first_head[0::2], ours[: head_dim // 2])
    assert torch.equal(first_head[1::2], ours[head_dim // 2 : head_dim])


def peak_bytes() -> int:
    """The most memory that this process held since it was asked to forget."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
def test_a_file_is_written_with_the_memory_of_one_layer(tmp_path: Path) -> None:
    wide = {"hidden_size": 512, "num_attention_heads": 64, "num_key_value_heads": 64, "head_dim": 64}
    parent = random_parent("llama", **SIZES | wide | {"num_hidden_layers": 8})
    queries = 4 * 512 * 64 * 64
    Path("/proc/self/clear_refs").write_text("5")  # forget
    before = peak_bytes()
    write_gguf(tmp_path / "model.gguf", parent.model, "f32", dummy_vocabulary(64))
    assert peak_bytes() - before < 6 * queries, "of 16 matrices of queries and keys"


@pytest.mark.parametrize(
    ("spelling", "layers"),
    [
        ("skip+skip kv4+ffn96 skip+skip", ["kv4 ffn96"]),
        ("kv4+skip skip+skip skip+ffn96", ["kv4 ffn96"]),
        ("skip+ffn96 kv4+ffn96", ["zeros ffn96", "kv4 ffn96"]),
        ("kv4+ffn96 skip+ffn32", ["kv4 ffn96", "- ffn32"]),
        ("kv4+skip kv2+ffn32", ["kv4 zeros", "kv2 ffn32"]),
        ("kv4+linear kv2+ffn32", ["kv4 zeros", "linear zeros", "kv2 ffn32"]),
        ("skip+skip", ["zeros zeros"]),
        ("linear+ffn96", ["zeros zeros", "linear ffn96"]),
    ],
)
def test_a_stream_is_regrouped(spelling: str, layers: list[str]) -> None:
    choices = Architecture.parse(spelling).choices()
    found = [
        f"{layer.mixer.what if layer.mixer else 'zeros' if layer.zero_mixer else '-'} "
        f"{layer.ffn.what if layer.ffn else 'zeros' if layer.zero_width else '-'}"
        for layer in reblock(choices, Needs(32))
    ]
    assert found == layers


def test_regrouping_keeps_the_order_and_leaves_no_mixer_without_an_ffn() -> None:
    choices = Architecture.parse("skip+linear kv4+skip linear+linear skip+ffn8 kv2+ffn9 skip+skip kv1+linear").choices()
    layers = reblock(choices, Needs(256, attention_everywhere=True))
    kept = [part for layer in layers for part in (layer.mixer, layer.ffn) if part is not None]
    assert kept == [choice for choice in choices if choice.what != SKIP]
    assert all(layer.ffn is not None or layer.zero_width == 256 for layer in layers)
    assert all(layer.mixer is not None or layer.zero_mixer for layer in layers)
    assert is_linear(Choice.parse("L0.ffn=linear"))
