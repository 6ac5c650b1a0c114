"""Children as GGUF files, each loaded by llama.cpp in a process of its own and compared, or refused with the reason."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from parents import GPT, child_of, random_parent

from blocklib.block import Architecture, Choice
from blocklib.errors import UnsupportedFormatError
from blocklib.formats.gguf import PRECISIONS, as_stored, check_gguf, write_gguf, write_random_gguf
from blocklib.formats.gguf_vocabulary import dummy_vocabulary
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, model_with
from nas.errors import ExportMismatchError
from nas.export.verify_gguf import EXACT, LlamaCppRun, compare_closely, compare_exactly

pytest.importorskip("xllamacpp")

VOCABULARY = 128
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "head_dim": 16,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "max_position_embeddings": 128,
}
NO_BIAS = {"attention_bias": False, "mlp_bias": False}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32, **FACTORS}


def parent(family: str = "llama", **more: Any) -> Parent:
    plain = NO_BIAS if family == "llama" else {}
    return random_parent(family, **SIZES | plain | more)


def compared(source: Parent, spelling: str, folder: Path) -> str:
    """The architecture of llama.cpp that carries the child, which computes what the child does: log-probabilities after
    several prompts, and 24 greedy tokens of two prompts, each alone and both as a batch."""
    child, vocabulary = child_of(source, spelling), dummy_vocabulary(VOCABULARY)
    model = write_gguf(folder / "child.gguf", child, "f32", vocabulary)
    found = compare_exactly(folder / "child.gguf", child, vocabulary)
    assert found.difference < 1e-4
    return model.carrier.name


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param("skip+ffn96 kv4+ffn96 kv4+ffn96 kv4+ffn96", id="first layer without attention"),
        pytest.param("kv4+ffn96 kv4+ffn96 kv2+ffn96 skip+skip", id="last block dropped"),
        pytest.param("kv4+ffn96 kv4+skip kv4+ffn96 kv4+ffn96", id="attention without FFN"),
        pytest.param("kv4+ffn96 kv4+ffn96 kv4+ffn96 kv4+skip", id="attention without FFN at the end"),
        pytest.param("kv4+linear kv4+ffn96 skip+linear kv4+ffn96", id="linear FFN"),
        pytest.param("kv4+ffn96 linear+ffn96 linear+skip kv4+ffn96", id="linear attention"),
        pytest.param("linear+ffn96 kv4+ffn96 kv4+ffn96 linear+ffn96", id="linear attention first"),
        pytest.param("kv4+ffn96 kv4+fuse(ffn96,ffn33) kv4+ffn96", id="fused run"),
        pytest.param("kv4+ffn96 skip+fuse_last(ffn96,ffn96,ffn64)", id="run read through the last norm"),
        pytest.param("kv4+ffn96 kv2+ffn33 kv1+ffn7 kv4+ffn64", id="KV heads and odd widths"),
        pytest.param("skip+skip skip+skip kv2+ffn64 skip+skip", id="one layer"),
        pytest.param("skip+skip skip+skip skip+skip skip+skip", id="no layer"),
        pytest.param("linear+skip skip+linear linear+linear linear+ffn96", id="no attention at all"),
        pytest.param("skip+linear kv4+skip linear+ffn7 kv1+linear", id="all"),
    ],
)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_children_compute_the_same_in_llama_cpp(spelling: str, tied: bool, tmp_path: Path) -> None:
    assert compared(parent(tie_word_embeddings=tied), spelling, tmp_path) in ("deci", "llama")


@pytest.mark.parametrize(
    ("family", "more", "carrier"),
    [
        ("llama", {}, "llama"),
        ("mistral", {}, "llama"),
        ("llama", {"attention_bias": True, "mlp_bias": True}, "llama"),
        ("qwen2", {}, "qwen2"),
        ("qwen2", {"tie_word_embeddings": False}, "qwen2"),
        ("qwen3", {}, "qwen3"),
        ("qwen3", {"tie_word_embeddings": True}, "qwen3"),
        ("qwen3", {"head_dim": 32}, "qwen3"),
        ("phi3", {}, "llama"),
        ("granite", {"attention_bias": False}, "llama"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_layers_that_are_alike_keep_the_parents_own_architecture(
    family: str, more: dict[str, Any], carrier: str, tmp_path: Path
) -> None:
    uniform = "kv2+ffn64 skip+skip kv2+ffn64 kv2+ffn64"
    assert compared(parent(family, **more), uniform, tmp_path) == carrier


@pytest.mark.parametrize(
    ("family", "more", "carrier"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}, "deci"),
        ("llama", {"head_dim": 32}, "deci"),
        ("qwen2", {}, "deci"),
        ("phi3", {}, "deci"),
        ("granite", {}, "deci"),
        ("granite", {"tie_word_embeddings": True, "mlp_bias": True}, "deci"),
        ("qwen3", {"tie_word_embeddings": True}, "openelm"),
        ("qwen3", {"tie_word_embeddings": True, "head_dim": 32}, "openelm"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_layers_that_differ_are_carried_for_every_family(
    family: str, more: dict[str, Any], carrier: str, tmp_path: Path
) -> None:
    mixed = "skip+ffn96 kv2+skip kv1+ffn33 kv4+ffn96"
    assert compared(parent(family, **more), mixed, tmp_path) == carrier


@pytest.mark.parametrize("rope", [LINEAR, LLAMA3, YARN], ids=lambda rope: str(rope["rope_type"]))
@pytest.mark.parametrize(
    "spelling", ["kv4+ffn96 kv4+ffn96 kv4+ffn96 kv4+ffn96", "skip+ffn96 kv2+skip kv1+ffn33 kv4+ffn96"]
)
def test_rotary_scaling_is_carried(rope: dict[str, Any], spelling: str, tmp_path: Path) -> None:
    compared(parent(rope_parameters=rope), spelling, tmp_path)


@pytest.mark.parametrize("rope", [LINEAR, LLAMA3, YARN], ids=lambda rope: str(rope["rope_type"]))
def test_a_lost_rotary_scaling_is_noticed(rope: dict[str, Any], tmp_path: Path) -> None:
    vocabulary = dummy_vocabulary(VOCABULARY)
    write_gguf(tmp_path / "unscaled.gguf", parent().model, "f32", vocabulary)
    with pytest.raises(ExportMismatchError, match="away from the child's"):
        compare_exactly(tmp_path / "unscaled.gguf", parent(rope_parameters=rope).model, vocabulary)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_loads_and_computes(precision: str, tmp_path: Path) -> None:
    """Against the child with its weights rounded the same way; 256 wide, so that K-quants keep their own blocks."""
    source = parent(hidden_size=256, intermediate_size=512, head_dim=64)
    child, vocabulary = child_of(source, "skip+ffn512 kv2+skip kv4+ffn256 linear+ffn96"), dummy_vocabulary(VOCABULARY)
    write_gguf(tmp_path / "child.gguf", child, precision, vocabulary)
    types = {
        tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(tmp_path / "child.gguf").tensors
    }
    assert types["blk.0.ffn_up.weight"] == precision
    compare_closely(tmp_path / "child.gguf", as_stored(child, precision), vocabulary, None)


def test_a_random_model_loads_and_its_logits_are_finite(tmp_path: Path) -> None:
    source = parent()
    architecture = Architecture.parse("skip+ffn96 kv2+skip linear+linear kv4+ffn96")
    write_random_gguf(tmp_path / "random.gguf", source.model.config, architecture, "q4_0")
    answer = LlamaCppRun(tmp_path / "random.gguf", exact=False).ask(dummy_vocabulary(VOCABULARY), [[5, 6, 7], [9, 8]])
    values = torch.tensor([value for likely in answer.likely for _, value in likely])
    assert torch.isfinite(values).all()
    assert [len(new) for new in answer.batch] == [24, 24]


def test_a_wrong_file_is_noticed(tmp_path: Path) -> None:
    """The weights of another child under the same names."""
    source, vocabulary = parent(), dummy_vocabulary(VOCABULARY)
    child, other = (child_of(source, f"kv4+ffn96 {kind} kv4+ffn96 kv4+ffn96") for kind in ("kv2+ffn96", "kv2+ffn95"))
    write_gguf(tmp_path / "other.gguf", other, "f32", vocabulary)
    with pytest.raises(ExportMismatchError, match=f"away from the child's; at most {EXACT}"):
        compare_exactly(tmp_path / "other.gguf", child, vocabulary)


@pytest.mark.parametrize(
    ("family", "more", "choice", "reason"),
    [
        *((family, {}, "L0.ffn=ffn96", "the GPT-2 layout") for family in GPT),
        ("llama", {}, "L1.attention=window16", "L1.attention=window16: .* carries window attention"),
        ("llama", {}, "L1.ffn=moe8x12k2", "L1.ffn=moe8x12k2: .* carries a moe FFN"),
        ("llama", {}, "L1.block=kv4+ffn96|kv4+ffn96", "carries blocks in parallel"),
        ("llama", {"attention_bias": True}, "L1.attention=linear", "a linear subblock with a bias"),
        ("llama", {"mlp_bias": True}, "L1.ffn=linear", "a linear subblock with a bias"),
        ("llama", {"hidden_act": "gelu"}, "L0.ffn=ffn96", "activation gelu"),
        ("llama", {"rope_parameters": LINEAR | {"rope_type": "dynamic"}}, "L0.ffn=ffn96", "type 'dynamic'"),
        ("phi3", {"rope_parameters": LONGROPE}, "L0.ffn=ffn96", "type 'longrope'"),
        ("qwen3", {}, "L1.ffn=ffn64", "L1.ffn=ffn64: .* only if all its layers are alike"),
        ("qwen3", {"tie_word_embeddings": True}, "L1.ffn=linear", "a linear subblock in a model with norms of queries"),
        ("qwen3", {"attention_bias": True}, "L1.ffn=ffn64", "biases in a model with norms of queries"),
        ("qwen3", {"rope_parameters": LLAMA3}, "L1.ffn=ffn64", "llama3 scaling in a model with norms"),
        ("smollm3", {}, "L0.ffn=ffn96", "layers whose attention has no positions"),
        ("gemma3_text", {}, "L0.ffn=ffn96", "layers of any size whose FFN has activation gelu_pytorch_tanh"),
        ("granite", {}, "L1.ffn=ffn64@q8_0", "L1.ffn=ffn64@q8_0: .* no part can have a precision of its own: leave"),
    ],
)
def test_what_llama_cpp_cannot_carry_is_refused_with_the_reason(
    family: str, more: dict[str, Any], choice: str, reason: str
) -> None:
    fitting = {name: value for name, value in SIZES.items() if family not in GPT or name == "vocab_size"}
    plain = NO_BIAS if family == "llama" else {}
    config = random_parent(family, **fitting | plain | more).model.config
    with pytest.raises(UnsupportedFormatError, match=reason):
        check_gguf([Choice.parse("L0.attention=kv4"), Choice.parse(choice)], config)


def test_a_file_that_is_far_from_the_child_sets_no_limit_of_its_own(tmp_path: Path) -> None:
    """Without layers, each token decides about the next. The file has another successor of token 5, which no prompt
    ends with; it is also far away from the child in a token that is hardly ever taken."""
    model = child_of(parent(vocab_size=64, tie_word_embeddings=False), " ".join(["skip+skip"] * 4))
    next_VV = torch.zeros(64, 64)  # logits of the next token, by the token
    next_VV[:, 5] = next_VV[5, 6] = 12.0
    next_VV[5, 5], next_VV[:, 63] = 0.0, -10.0
    wrong_VV = next_VV.clone()
    wrong_VV[5, 7], wrong_VV[:, 63] = 14.0, -4.0

    def with_next(logits_VV: torch.Tensor) -> PuzzleNasForCausalLM:
        weights = {"model.embed_tokens.weight": torch.eye(64), "model.norm.weight": torch.ones(64),
                   "lm_head.weight": logits_VV.T / 8}  # fmt: skip
        return model_with(model.config, weights)

    vocabulary = dummy_vocabulary(64)
    for name, logits_VV in (("right", next_VV), ("wrong", wrong_VV)):
        write_gguf(tmp_path / f"{name}.gguf", with_next(logits_VV), "f32", vocabulary)
    compare_closely(tmp_path / "right.gguf", with_next(next_VV), vocabulary, None)
    with pytest.raises(ExportMismatchError, match=r"generates other tokens .* one is 12 nats less likely"):
        compare_closely(tmp_path / "wrong.gguf", with_next(next_VV), vocabulary, None)
