"""The tokenizer of a GGUF parent gives the tokens that llama.cpp gives for the same file."""

import string
from pathlib import Path
from typing import Any

from gguf_files import model_of, written
from transformers import AutoTokenizer

from nas.text.parent_folder import parent_folder


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
