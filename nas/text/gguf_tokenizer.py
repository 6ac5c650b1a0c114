"""The tokenizer of a GGUF file, saved as a folder's: the vocabulary that transformers reads from it, and the rule by
which llama.cpp cuts text into words before it looks any up.

A file names that rule and does not hold it. transformers takes GPT-2's for a name that it does not know, and would then
read "2024" as another token than the model was trained on; so `pre_tokenizers.py` has the rules, and an unknown name is
refused.
"""

import json
from pathlib import Path
from typing import Any

from blocklib.errors import CheckpointError
from blocklib.gguf_header import GgufHeader
from nas.text.pre_tokenizers import WORD_RULES, splitter

_ORIGINAL = "give the folder of the checkpoint it was made from"
_KINDS = ("gpt2", "llama")
"""llama.cpp's names for byte-level BPE and for SentencePiece."""


def check_gguf_tokenizer(header: GgufHeader) -> None:
    """Raise CheckpointError where llama.cpp knows the file's tokenizer and no tokenizer of transformers is known to
    give the same tokens."""
    kind, rule = header.keys["tokenizer.ggml.model"], header.keys.get("tokenizer.ggml.pre")
    if kind not in _KINDS:
        cause = f"its tokenizer is llama.cpp's {kind!r}; known here: {', '.join(_KINDS)}"
        raise CheckpointError(header.file, cause, _ORIGINAL)
    if kind == "gpt2" and rule not in WORD_RULES:
        cause = f"its tokenizer cuts words by llama.cpp's rule {rule!r} (tokenizer.ggml.pre); known here: "
        raise CheckpointError(header.file, cause + ", ".join(sorted(WORD_RULES)), _ORIGINAL)


def save_tokenizer(header: GgufHeader, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template. Raises as `check_gguf_tokenizer` does, and
    CheckpointError where the file's vocabulary cannot be read."""
    check_gguf_tokenizer(header)
    from transformers import AutoTokenizer

    rule = WORD_RULES.get(header.keys.get("tokenizer.ggml.pre", ""))
    begins = {"add_bos_token": True} if rule is not None and rule.adds_bos else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(header.file.parent, gguf_file=header.file.name, **begins)
    except Exception as error:  # The vocabulary may hold anything, and so may what a library says of it.
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(header.file, f"its tokenizer cannot be made: {said}", _ORIGINAL) from error
    backend: Any = tokenizer.backend_tokenizer
    if header.keys["tokenizer.ggml.model"] == "gpt2":
        assert rule is not None, "checked above"
        backend.pre_tokenizer = splitter(rule)
        backend.model.ignore_merges = rule.takes_whole_words
    elif not header.keys.get("tokenizer.ggml.add_space_prefix", True):
        from tokenizers import decoders, pre_tokenizers

        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save_pretrained(folder)
    _keep_first_tokens(folder / "tokenizer.json", header.keys["tokenizer.ggml.tokens"])


def _keep_first_tokens(file: Path, count: int) -> None:
    """Transformers adds GPT-2's end of text to every byte-level vocabulary, and the model has no row for a token that
    its file does not hold."""
    made = json.loads(file.read_text(encoding="utf-8"))
    made["added_tokens"] = [token for token in made["added_tokens"] if token["id"] < count]
    file.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
