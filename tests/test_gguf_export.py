"""Exported GGUF folders: the file as llama.cpp reads it, its vocabulary and settings; tokenizers it cannot have."""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from parents import child_of, random_parent
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from blocklib.model import PuzzleNasForCausalLM
from cost_models.scenario import ENGINES
from nas.errors import ExportMismatchError, MissingFileError, UnsupportedExportError
from nas.export.formats import Target, exporter
from nas.export.generation import Carried
from nas.export.gguf import export_gguf, modelfile
from nas.export.gguf_tokenizer import vocabulary_of
from nas.export.mixed_text import SIZE, mixed_text
from nas.export.parent_settings import ParentSettings
from nas.text.pre_tokenizers import WORD_RULES, pre_tokenizer_name, splitter

pytest.importorskip("xllamacpp")

VOCABULARY = 400
CARD = "---\nlicense: apache-2.0\nbase_model: someone/parent\n---\n# A child\n"
TEMPLATE = "{% for message in messages %}<|bos|>{{ message['content'] }}{% endfor %}"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES_ALONE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(expression: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), BYTES_ALONE])


SPLITTERS: dict[str, Any] = {
    "gpt-2": BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    "qwen2": split(WORDS + r"|\p{N}" + REST),
    "smaug-bpe": split(WORDS + r"|\p{N}{1,3}" + REST),
    "gpt-4o": split(
        rf"{UPPER}*{LOWER}+{SUFFIX}?|{UPPER}+{LOWER}*{SUFFIX}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


def byte_level(splitter: Any = BYTES, normaliser: Any = None) -> PreTrainedTokenizerFast:
    """BPE over bytes, trained on a part of the text that it is compared on."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = splitter, decoders.ByteLevel()
    if normaliser is not None:
        core.normalizer = normaliser
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|bos|>", "<|end|>"]
    core.train_from_iterator(
        mixed_text()[:20],
        trainers.BpeTrainer(vocab_size=VOCABULARY - 20, special_tokens=special, initial_alphabet=alphabet,
                            show_progress=False),
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|bos|>", eos_token="<|end|>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """BPE with a byte for each unknown character, as Llama 2 has it."""
    normaliser = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = normaliser
    trained.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog and the other foxes jump away from it there"] * 4,
        trainers.BpeTrainer(vocab_size=100, show_progress=False),
    )
    pieces = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(piece for piece, _ in pieces)]
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normaliser
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def child() -> PuzzleNasForCausalLM:
    parent = random_parent(
        "llama", vocab_size=VOCABULARY, hidden_size=64, head_dim=16, num_attention_heads=4, intermediate_size=96,
        num_hidden_layers=3, max_position_embeddings=128, attention_bias=False, mlp_bias=False,
    )  # fmt: skip
    return child_of(parent, "skip+ffn96 kv2+skip kv4+ffn33")


def keys_of(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*.gguf")
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def test_a_folder_holds_all_that_an_engine_needs(child: PuzzleNasForCausalLM, tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = TEMPLATE
    settings = GenerationConfig(do_sample=True, temperature=0.7, top_k=40)
    before = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    done = exporter(Target("gguf", "q8_0"))(
        child, tokenizer, tmp_path / "my child", CARD, ParentSettings(LlamaConfig(), Carried(settings))
    )
    assert done.files == ("Modelfile", "README.md", "model-Q8_0.gguf")
    assert done.max_logit_difference < 1e-4
    keys = keys_of(done.folder)
    assert (keys["general.architecture"], keys["general.name"]) == ("deci", "A child")
    assert keys["general.license"] == "apache-2.0"
    assert keys["general.base_model.0.repo_url"] == "https://huggingface.co/someone/parent"
    assert keys["deci.context_length"] == 128
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert keys["tokenizer.ggml.tokens"][keys["tokenizer.ggml.eos_token_id"]] == "<|end|>"
    assert len(keys["tokenizer.ggml.tokens"]) == VOCABULARY
    assert keys["tokenizer.chat_template"] == TEMPLATE
    assert keys["tokenizer.ggml.add_bos_token"] is False
    modelfile = (done.folder / "Modelfile").read_text().splitlines()
    assert modelfile[0] == "FROM ./model-Q8_0.gguf"
    assert 'PARAMETER stop "<|end|>"' in modelfile
    card = (done.folder / "README.md").read_text()
    assert "llama-server -m model-Q8_0.gguf" in card
    assert "ollama create a-child -f Modelfile" in card
    assert "stored as f16" in card, "33 is no multiple of 32"
    assert "the file has one of zeros" in card
    assert all(torch.equal(tensor, before[name]) for name, tensor in child.state_dict().items())


SAMPLES = [
    (GenerationConfig(), ["temperature 0", "repeat_penalty 1.0"]),
    (GenerationConfig(repetition_penalty=1.2), ["temperature 0", "repeat_penalty 1.2"]),
    (
        GenerationConfig(do_sample=True, temperature=0.7, min_p=0.1),
        ["temperature 0.7", "top_k 50", "top_p 1.0", "min_p 0.1", "repeat_penalty 1.0"],
    ),
]


@pytest.mark.parametrize(("settings", "told"), SAMPLES)
def test_ollama_samples_as_the_parent_does_where_its_own_defaults_are_others(
    settings: GenerationConfig, told: list[str]
) -> None:
    vocabulary = vocabulary_of(byte_level(), VOCABULARY)
    lines = modelfile("m.gguf", vocabulary, ParentSettings(LlamaConfig(), Carried(settings))).splitlines()
    assert lines == ["FROM ./m.gguf", *(f"PARAMETER {each}" for each in told), 'PARAMETER stop "<|end|>"']
    assert len(modelfile("m.gguf", vocabulary, None).splitlines()) == 2


def test_sentencepiece_is_carried(child: PuzzleNasForCausalLM, tmp_path: Path) -> None:
    done = export_gguf(child, sentencepiece(), tmp_path / "out", CARD, precision="f32")
    keys = keys_of(done.folder)
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert done.files == ("Modelfile", "README.md", "model-F32.gguf")


@pytest.mark.parametrize("name", SPLITTERS)
def test_ways_to_split_text_are_named_as_llama_cpp_has_them(
    name: str, child: PuzzleNasForCausalLM, tmp_path: Path
) -> None:
    """The export itself compares ids on 100 kB."""
    done = export_gguf(child, byte_level(SPLITTERS[name]), tmp_path / "out", CARD, precision="f16")
    assert keys_of(done.folder)["tokenizer.ggml.pre"] == name


def test_words_that_are_tokens_have_a_name_of_their_own(child: PuzzleNasForCausalLM, tmp_path: Path) -> None:
    """As above, where a word that is a token is not merged."""
    tokenizer = byte_level(splitter(WORD_RULES["tekken"]))
    tokenizer.backend_tokenizer.model.ignore_merges = True
    done = export_gguf(child, tokenizer, tmp_path / "out", CARD, precision="f16")
    assert keys_of(done.folder)["tokenizer.ggml.pre"] == "tekken"


def test_unicode_that_only_the_tokenizer_normalises_is_noted(child: PuzzleNasForCausalLM, tmp_path: Path) -> None:
    done = export_gguf(child, byte_level(SPLITTERS["qwen2"], normalizers.NFC()), tmp_path / "out", CARD)
    assert any("NFC first" in note for note in done.notes)


def test_other_ids_refuse_the_export_and_leave_nothing(child: PuzzleNasForCausalLM, tmp_path: Path) -> None:
    """A normaliser that llama.cpp does not have."""
    with pytest.raises(ExportMismatchError, match=r"does not tokenise text as the child's tokenizer does: \[.* not \["):
        export_gguf(child, byte_level(normaliser=normalizers.Lowercase()), tmp_path / "out", CARD)
    assert list(tmp_path.iterdir()) == []


def test_tokenizers_without_a_name_in_llama_cpp_are_refused(child: PuzzleNasForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedExportError, match="knows no name of llama"):
        export_gguf(child, byte_level(split(r"\p{L}+|\p{N}+|.")), tmp_path / "out", CARD)
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(UnsupportedExportError, match="a WordLevel tokenizer"):
        vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=words), VOCABULARY)
    with pytest.raises(UnsupportedExportError, match="and the model 100"):
        vocabulary_of(byte_level(), 100)
    assert list(tmp_path.iterdir()) == []


def test_names_of_splitters_depend_on_merging() -> None:
    description = json.loads(byte_level(SPLITTERS["smaug-bpe"]).backend_tokenizer.to_str())
    steps = description["pre_tokenizer"]
    assert pre_tokenizer_name({"pre_tokenizer": steps, "model": {"ignore_merges": True}}) == "llama-bpe"
    assert pre_tokenizer_name({"pre_tokenizer": steps, "model": {}}) == "smaug-bpe"


def test_without_llama_cpp_the_error_says_what_to_type(
    child: PuzzleNasForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # Python finds no such package then.
    with pytest.raises(MissingFileError, match=r"pip install 'puzzle-nas\[llama-cpp\]'"):
        export_gguf(child, byte_level(), tmp_path / "out", CARD)


def test_precisions_belong_to_gguf(child: PuzzleNasForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedExportError, match="precision q8_0 is one of format gguf"):
        exporter(Target("hf", "q8_0"))
    with pytest.raises(UnsupportedExportError, match=r"formats: hf, decilm, gguf"):
        exporter(Target("onnx"))
    with pytest.raises(UnsupportedExportError, match=f"use one of {', '.join(ENGINES['llama_cpp'])}"):
        export_gguf(child, byte_level(), tmp_path / "out", CARD, precision="q4_k_m")


def test_the_text_that_is_compared_is_long_and_mixed() -> None:
    text = "".join(mixed_text())
    assert len(text.encode()) >= SIZE
    assert all(piece in text for piece in ("def ", "世界", "день", "\r\n", "\t\t", "😀", "1234", "   "))
    assert mixed_text() == mixed_text()
