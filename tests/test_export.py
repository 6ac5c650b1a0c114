"""Exports of children of real parents, reloaded in what they are for and compared."""

import ast
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from blocklib.activations import cached
from blocklib.assemble import assemble
from blocklib.block import Architecture, Choice, Subblock
from blocklib.formats.subblocks import Placed, repack, subblocks_of
from blocklib.initial_weights import build
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, load_parent
from nas.errors import ExportMismatchError, UnsupportedExportError
from nas.export.decilm import export_decilm, ffn_size
from nas.export.exported import Exported, whole_folder
from nas.export.hf import export_hf, write_code
from nas.export.modeling_decilm import width_of
from nas.export.verify import TOLERANCE

EVERY_KIND = (
    "skip+ffn512 kv2+ffn256 linear+ffn96 kv1+linear kv4+skip skip+skip kv4+fuse(ffn512,ffn96) "
    "kv2+fuse_last(ffn256,ffn512)"
)
EVERY_DECILM_KIND = (
    "skip+ffn512 kv2+skip skip+skip skip+ffn256 skip+ffn96 kv4+skip kv1+fuse(ffn512,ffn96) kv4+fuse_last(ffn256,ffn512)"
)
CARD = "---\nlicense: apache-2.0\nbase_model: someone/parent\n---\n# A child\n\n| score |\n|---|\n| 1 |\n"
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SIZES = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
STORIES = Path(__file__).parents[1] / "../shared/parents/stories3M"
PUBLISHED = Path(__file__).parents[1] / "../shared/configs/nvidia__Llama-3_1-Nemotron-Ultra-253B-v1.config.json"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(["<s>", "</s>", *alphabet])}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def random_parent(config: LlamaConfig | Qwen2Config | Qwen3Config, folder: Path) -> Parent:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            # transformers makes biases 0 and norms 1, and a lost one would not be noticed.
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    return load_parent(str(folder))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Parent:
    config = LlamaConfig(**SIZES, num_hidden_layers=10, rope_parameters=LLAMA3_ROPE)
    return random_parent(config, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Parent:
    return random_parent(Qwen2Config(**SIZES, num_hidden_layers=2), tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Parent:
    """Norms of queries and keys, biases in all four projections, a tied head."""
    config = Qwen3Config(**SIZES, num_hidden_layers=10, attention_bias=True, tie_word_embeddings=True)
    return random_parent(config, tmp_path_factory.mktemp("qwen3"))


def child_of(parent: Parent, spelling: str) -> PuzzleNasForCausalLM:
    """A child with first weights, its own copy: nothing a test does to it reaches the parent."""
    architecture = Architecture.parse(spelling)
    asked = [choice for choice in architecture.choices() if not parent.own(choice)]
    ids = torch.randint(parent.shape.vocabulary, (2, 16), generator=torch.Generator().manual_seed(1))
    first = {
        built.choice: built.first for built in build(parent, asked, cached(parent.model, ids, 2), batch=2, fit=False)
    }
    return assemble(parent, architecture, first.__getitem__)


def logits(model: torch.nn.Module, vocabulary: int) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.arange(24).view(2, 12) % vocabulary, use_cache=False).logits
    return found


def test_hf_carries_every_kind(llama: Parent, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    child = child_of(llama, EVERY_KIND)
    out = tmp_path / "child-1.0"
    exported = export_hf(child, tokenizer, out, CARD)
    assert exported.folder == out
    assert exported.max_logit_difference <= TOLERANCE
    assert set(exported.files) >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                                   "configuration_puzzle_nas.py", "modeling_puzzle_nas.py", "README.md"}  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == EVERY_KIND
    assert config["per_layer_config"]["3"] == {"num_key_value_heads": 1, "ffn_kind": "linear"}
    # Where this package is imported, no flag is needed, and the bits are the child's.
    reloaded = AutoModelForCausalLM.from_pretrained(out)
    assert type(reloaded) is PuzzleNasForCausalLM
    assert torch.equal(logits(reloaded, 272), logits(child, 272))


def test_hf_carries_biases_norms_and_a_tied_head(
    qwen3: Parent, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    child = child_of(qwen3, EVERY_KIND)
    assert export_hf(child.bfloat16(), tokenizer, tmp_path / "child", CARD).max_logit_difference <= TOLERANCE
    config = json.loads((tmp_path / "child/config.json").read_text())
    # DeciLM's engines read the name that transformers has left behind.
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"


@pytest.mark.skipif(not STORIES.is_dir(), reason="no trained parent beside the repository")
def test_hf_carries_a_trained_child(tmp_path: Path) -> None:
    child = child_of(
        load_parent(str(STORIES)), "skip+ffn512 kv1+ffn256 kv2+fuse(ffn512,ffn300) linear+linear kv2+ffn512"
    )
    exported = export_hf(child, AutoTokenizer.from_pretrained(STORIES), tmp_path / "child", CARD)
    assert exported.max_logit_difference <= TOLERANCE


@pytest.mark.skipif(not STORIES.is_dir(), reason="no trained parent beside the repository")
def test_decilm_carries_a_trained_child(tmp_path: Path) -> None:
    child = child_of(load_parent(str(STORIES)), "skip+ffn512 kv1+ffn256 kv2+fuse(ffn512,ffn512) kv2+skip kv2+ffn512")
    exported = export_decilm(child, AutoTokenizer.from_pretrained(STORIES), tmp_path / "child", CARD)
    assert exported.max_logit_difference <= TOLERANCE


@pytest.mark.parametrize("export", [export_hf, export_decilm])
def test_a_child_is_written_in_the_dtype_it_has(
    qwen2: Parent, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, export: Callable[..., Exported]
) -> None:
    child = child_of(qwen2, "skip+ffn256 skip+ffn512").to(torch.bfloat16)
    exported = export(child, tokenizer, tmp_path / "child", CARD)
    assert exported.max_logit_difference <= TOLERANCE
    written = load_file(tmp_path / "child/model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "child/config.json").read_text())
    # DeciLM's engines read the name that transformers has left behind.
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"


@pytest.mark.parametrize("spelling", [EVERY_KIND, " ".join(["kv4+ffn512"] * 10), " ".join(["skip+skip"] * 10)])
def test_written_code_is_self_contained(llama: Parent, tmp_path: Path, spelling: str) -> None:
    write_code(child_of(llama, spelling).config, tmp_path)
    for name in ("configuration_puzzle_nas.py", "modeling_puzzle_nas.py"):
        text = (tmp_path / name).read_text()
        statements = ast.parse(text).body
        imported = [s.module or "" for s in statements if isinstance(s, ast.ImportFrom) and s.level == 0]
        imported += [alias.name for s in statements if isinstance(s, ast.Import) for alias in s.names]
        assert {module.split(".")[0] for module in imported} <= {"torch", "transformers", *sys.stdlib_module_names}
        assert "blocklib" not in text
        assert "import nas" not in text
        assert "from nas" not in text
        assert max(map(len, text.splitlines())) <= 120
    assert ("class LinearAttention" in text) == ("linear+" in spelling)
    assert ("class GroupedQueryAttention" in text) == ("kv4" in spelling)


def test_the_card_keeps_the_callers_front_matter(
    llama: Parent, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    export_decilm(child_of(llama, EVERY_DECILM_KIND), tokenizer, tmp_path / "child", CARD)
    readme = (tmp_path / "child/README.md").read_text()
    assert readme.startswith("---\n")
    front, body = readme.removeprefix("---\n").split("\n---\n", 1)
    for line in ("license: apache-2.0", "base_model: someone/parent", "library_name: transformers", "- puzzle-nas"):
        assert line in front.splitlines()
    assert "| score |" in body
    assert "first layer has no attention" in body


def test_decilm_carries_what_its_engines_have(
    llama: Parent, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    exported = export_decilm(child_of(llama, EVERY_DECILM_KIND), tokenizer, tmp_path / "child", CARD)
    assert exported.max_logit_difference <= TOLERANCE
    config = json.loads((tmp_path / "child/config.json").read_text())
    blocks = [(block["attention"]["n_heads_in_group"], block["ffn"]) for block in config["block_configs"]]
    flags = {"replace_with_linear": False, "sparsify": None}
    assert blocks == [
        (4, {"ffn_mult": 24.0, "no_op": False, **flags}),
        (2, {"ffn_mult": 12.0, "no_op": False, **flags}),
        (None, {"intermediate_size": 96, "no_op": False, **flags}),
        (1, {"ffn_mult": None, "no_op": True, **flags}),
        (4, {"intermediate_size": 608, "no_op": False, **flags}),
        (1, {"ffn_mult": 36.0, "no_op": False, **flags}),
    ]
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"] == {name: value for name, value in LLAMA3_ROPE.items() if name != "rope_theta"}
    assert [("96, 608" in note, "KV head" in note) for note in exported.notes] == [(True, False), (False, True)]


def test_decilm_of_a_tied_bfloat16_child(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rotary = {"rope_type": "default", "rope_theta": 300.0}
    sizes = SIZES | {"head_dim": 16, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, tie_word_embeddings=True, rope_parameters=rotary)
    parent = random_parent(config, tmp_path / "parent")
    exported = export_decilm(child_of(parent, "skip+skip skip+skip").bfloat16(), tokenizer, tmp_path / "none", "# A")
    assert exported.max_logit_difference <= TOLERANCE
    exported = export_decilm(child_of(parent, "kv4+ffn512 kv2+ffn256").bfloat16(), tokenizer, tmp_path / "child", CARD)
    assert exported.notes == ()
    written = json.loads((exported.folder / "config.json").read_text())
    assert (written["head_dim"], written["torch_dtype"], written["rope_theta"]) == (16, "bfloat16", 300.0)
    assert "rope_scaling" not in written


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="no published configuration beside the repository")
def test_decilm_is_written_as_published(llama: Parent, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    published = json.loads(PUBLISHED.read_text())
    export_decilm(child_of(llama, " ".join(["kv4+ffn512"] * 10)), tokenizer, tmp_path / "child", CARD)
    written = json.loads((tmp_path / "child/config.json").read_text())
    assert set(written) == set(published) - {"_name_or_path"} | {"pad_token_id"}
    for key in (
        "architectures",
        "model_type",
        "intermediate_size",
        "num_key_value_heads",
        "mlp_bias",
        "attention_bias",
    ):
        assert written[key] == published[key]
    same = {(part, key) for block in published["block_configs"] for part in block for key in block[part]}
    assert {(part, key) for block in written["block_configs"] for part in block for key in block[part]} == same


def test_decilm_configuration_loads_as_an_engine_loads_it(
    llama: Parent, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_decilm(child_of(llama, EVERY_DECILM_KIND), tokenizer, tmp_path / "child", CARD)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = AutoConfig.from_pretrained(tmp_path / "child", trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules.")
    assert not config.block_configs[0].attention.no_op
    assert not hasattr(config.block_configs[2].ffn, "ffn_mult")
    assert config.rope_parameters["rope_type"] == "llama3"
    config.save_pretrained(tmp_path / "again")
    again = type(config).from_pretrained(tmp_path / "again")
    assert again.block_configs == config.block_configs


@pytest.mark.parametrize(
    ("parent_name", "spelling", "what"),
    [
        ("qwen2", "linear+ffn512 kv4+ffn512", "L0.attention=linear: .* linear attention; export as hf"),
        ("qwen2", "skip+linear skip+ffn512", "L0.ffn=linear: .* linear FFN; export as hf"),
        ("qwen2", "skip+ffn512 kv4+ffn512", "L1.attention=kv4: .* biases .*; export as hf"),
        ("qwen3", " ".join(["skip+ffn512"] * 9 + ["kv2+ffn512"]), "L9.attention=kv2: .* norms .*; export as hf"),
    ],
)
def test_decilm_refuses_what_it_cannot_say(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, tmp_path: Path,
    parent_name: str, spelling: str, what: str,
) -> None:  # fmt: skip
    child = child_of(request.getfixturevalue(parent_name), spelling)
    with pytest.raises(UnsupportedExportError, match=what):
        export_decilm(child, tokenizer, tmp_path / "child", CARD)
    assert list(tmp_path.iterdir()) == []


def test_decilm_refuses_rotary_scaling_its_engines_differ_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rotary = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
    parent = random_parent(LlamaConfig(**SIZES, num_hidden_layers=1, rope_parameters=rotary), tmp_path / "parent")
    with pytest.raises(UnsupportedExportError, match=r"'yarn'.*export as hf"):
        export_decilm(child_of(parent, "kv2+ffn512"), tokenizer, tmp_path / "child", CARD)


def test_a_damaged_child_leaves_nothing_behind(
    qwen2: Parent, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    child = child_of(qwen2, "skip+ffn256 skip+ffn512").to(torch.float64).float()
    child.model.norm.weight.data[3] = torch.nan
    with pytest.raises(ExportMismatchError, match="nan"):
        export_decilm(child, tokenizer, tmp_path / "child", CARD)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_and_an_empty_one_taken(tmp_path: Path) -> None:
    out = tmp_path / "child"
    out.mkdir()
    with whole_folder(out) as folder:
        (folder / "one").write_text("1")
        assert list(out.iterdir()) == []
    assert [path.name for path in out.iterdir()] == ["one"]
    with pytest.raises(FileExistsError, match="not empty"), whole_folder(out):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["child"]


def test_a_folder_taken_in_the_meantime_is_left_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "child"

    def write() -> None:
        with whole_folder(out) as folder:
            (folder / "one").write_text("mine")
            out.mkdir()
            (out / "one").write_text("another's")

    with pytest.raises(FileExistsError, match="not empty"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["child"]
    assert (out / "one").read_text() == "another's"


def test_a_child_is_one_stream_in_order(llama: Parent) -> None:
    child = child_of(llama, EVERY_KIND)
    stream = subblocks_of(child)
    spelled = [str(placed.choice) for placed in stream]
    assert spelled == [str(choice) for choice in Architecture.parse(EVERY_KIND).choices() if str(choice.what) != "skip"]
    held = sum(tensor.numel() for placed in stream for tensor in placed.weights.values())
    assert held == sum(tensor.numel() for tensor in child.model.layers.state_dict().values())


@given(st.lists(st.sampled_from(["attention", "ffn"]), max_size=12))
def test_repacking_keeps_the_order_and_wastes_no_layer(roles: list[str]) -> None:
    stream = tuple(
        Placed(Choice(index, "attention" if role == "attention" else "ffn", Subblock("x")), {str(index): torch.ones(1)})
        for index, role in enumerate(roles)
    )
    layers = repack(stream)
    unpacked = [part for layer in layers for part in (layer.attention, layer.ffn) if part is not None]
    assert [list(part) for part in unpacked] == [list(placed.weights) for placed in stream]
    joined = sum(pair == ("attention", "ffn") for pair in pairwise(roles))
    assert len(layers) == max(1, len(roles) - joined)


@given(st.integers(1, 2000), st.integers(1, 512).map(lambda n: 32 * n))
def test_a_width_is_read_back_as_it_was_written(width: int, hidden: int) -> None:
    assert width_of(float(ffn_size(256 * width, hidden)["ffn_mult"]), hidden) == 256 * width
    size = ffn_size(width, hidden)
    assert ("ffn_mult" in size) == (width % 256 == 0)
    assert size.get("intermediate_size", width) == width
