"""The tokenizer of a GGUF parent gives the tokens that llama.cpp gives for the same file."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from gguf_files import WORDS, model_of, written
from transformers import AutoTokenizer

from nas.text.parent_folder import parent_folder
from nas.text.pre_tokenizers import WORD_RULES, pre_tokenizer_name


def _tokenizer(file: Path, **changed: Any) -> Any:
    """The tokenizer of a file with these keys changed, as it is loaded from the unpacked folder."""
    return AutoTokenizer.from_pretrained(parent_folder(str(written(file, model_of(), **changed)), file.parent))


def test_each_digit_is_a_token_where_llama_cpp_cuts_so(tmp_path: Path) -> None:
    digits, words = (_tokenizer(tmp_path / f"{rule}.gguf", tokenizer__ggml__pre=rule) for rule in ("smollm", "gpt-2"))

    assert digits.tokenize("12 the") == ["1", "2", "Ġthe"]
    assert words.tokenize("12 the") == ["12", "Ġthe"]
    assert digits.chat_template == "{{ messages[0]['content'] }}"
    assert (digits.bos_token_id, digits.eos_token_id) == (1, 2)


def test_a_word_that_is_a_token_needs_no_merges_of_llama_3(tmp_path: Path) -> None:
    rule = {"tokenizer__ggml__pre": "llama-bpe"}
    made = _tokenizer(tmp_path / "m.gguf", tokenizer__ggml__merges=["Ġ t"], **rule)
    silent = _tokenizer(tmp_path / "silent.gguf", tokenizer__ggml__add_bos_token=False, **rule)

    assert made.convert_ids_to_tokens(made("the the")["input_ids"]) == ["<s>", "t", "h", "e", "Ġthe"]
    assert silent.convert_ids_to_tokens(silent("12")["input_ids"]) == ["12"]


def test_a_vocabulary_without_gpt_2s_end_of_text_gets_none(tmp_path: Path) -> None:
    file = written(tmp_path / "m.gguf", model_of(), tokenizer__ggml__pre="smollm")
    made = AutoTokenizer.from_pretrained(parent_folder(str(file), tmp_path))
    assert len(made) == len(WORDS)
    assert max(made("the <|endoftext|>")["input_ids"]) < len(made)


@pytest.mark.parametrize("name", WORD_RULES)
def test_a_rule_that_is_read_is_written_back(name: str, tmp_path: Path) -> None:
    """Tokens are cut by the rule, and the export names one that cuts so."""
    made = _tokenizer(tmp_path / "m.gguf", tokenizer__ggml__pre=name)
    said = pre_tokenizer_name(json.loads(made.backend_tokenizer.to_str()))

    assert WORD_RULES[said] == WORD_RULES[name]


def test_rules_of_cases_and_digits_cut_as_llama_cpp_does(tmp_path: Path) -> None:
    smaug, tekken, gpt_4o = (
        _tokenizer(tmp_path / f"{rule}.gguf", tokenizer__ggml__pre=rule) for rule in ("smaug-bpe", "tekken", "gpt-4o")
    )

    def words(made: Any, text: str) -> list[str]:
        return [word for word, _ in made.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    text = "theThe it's 1234"
    assert words(smaug, text) == ["theThe", "Ġit", "'s", "Ġ", "123", "4"]
    assert words(tekken, text) == ["the", "The", "Ġit", "'s", "Ġ", "1", "2", "3", "4"]
    assert words(gpt_4o, text) == ["the", "The", "Ġit's", "Ġ", "123", "4"]
    assert [made("12")["input_ids"][0] == made.bos_token_id for made in (smaug, tekken, gpt_4o)] == [False, True, False]


def test_sentencepiece_begins_with_a_space_where_the_file_says_so(tmp_path: Path) -> None:
    words = ["<unk>", "<s>", "</s>", "▁", "▁t", "he", "▁the", "the", *string.ascii_letters]
    words += [f"<0x{at:02X}>" for at in range(64 - len(words))]
    keys: dict[str, Any] = {
        "tokenizer__ggml__model": "llama", "tokenizer__ggml__pre": None, "tokenizer__ggml__merges": None,
        "tokenizer__ggml__tokens": words, "tokenizer__ggml__scores": [-float(at) for at in range(64)],
        "tokenizer__ggml__token_type": [2, 3, 3] + [1] * 57 + [6] * 4,
    }  # fmt: skip
    spaced, bare = (
        _tokenizer(tmp_path / f"{flag}.gguf", tokenizer__ggml__add_space_prefix=flag, **keys) for flag in (True, False)
    )

    assert spaced.tokenize("the the") == ["▁the", "▁the"]
    assert bare.tokenize("the the") == ["the", "▁the"]
    assert spaced("the")["input_ids"][0] == 1
    assert bare.decode(bare("the the", add_special_tokens=False)["input_ids"]) == "the the"
