"""The tokenizer of a GGUF file, saved as a folder's: the vocabulary that transformers reads from it, and the rule by
which llama.cpp cuts text into words before it looks any up.

A file names that rule and does not hold it. transformers takes GPT-2's for a name that it does not know, and would then
read "2024" as another token than the model was trained on; so the rules stand here, and an unknown name is refused.
Source of the names: `llama-vocab.cpp` of llama.cpp.
"""

from pathlib import Path
from typing import Any

from blocklib.errors import CheckpointError
from blocklib.gguf_header import GgufHeader

_ORIGINAL = "give the folder of the checkpoint it was made from"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_GPT2, _DIGITS = "GPT-2's words", "GPT-2's words, and each digit alone"
_RULES = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "jais", "phi-2"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
}
_KINDS = ("gpt2", "llama")
"""llama.cpp's names for byte-level BPE and for SentencePiece."""


def check_gguf_tokenizer(header: GgufHeader) -> None:
    """Raise CheckpointError where llama.cpp knows the file's tokenizer and no tokenizer of transformers is known to
    give the same tokens."""
    kind, rule = header.keys["tokenizer.ggml.model"], header.keys.get("tokenizer.ggml.pre")
    if kind not in _KINDS:
        cause = f"its tokenizer is llama.cpp's {kind!r}; known here: {', '.join(_KINDS)}"
        raise CheckpointError(header.file, cause, _ORIGINAL)
    if kind == "gpt2" and rule not in _RULES:
        cause = f"its tokenizer cuts words by llama.cpp's rule {rule!r} (tokenizer.ggml.pre); known here: "
        raise CheckpointError(header.file, cause + ", ".join(sorted(_RULES)), _ORIGINAL)


def save_tokenizer(header: GgufHeader, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template. Raises as `check_gguf_tokenizer` does, and
    CheckpointError where the file's vocabulary cannot be read."""
    check_gguf_tokenizer(header)
    from transformers import AutoTokenizer

    rule = _RULES.get(header.keys.get("tokenizer.ggml.pre", ""))
    # llama.cpp begins a text of Llama 3's with its first token, unless the file says otherwise.
    begins = {"add_bos_token": True} if rule == _LLAMA3 else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(header.file.parent, gguf_file=header.file.name, **begins)
    except Exception as error:  # The vocabulary may hold anything, and so may what a library says of it.
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(header.file, f"its tokenizer cannot be made: {said}", _ORIGINAL) from error
    backend: Any = tokenizer.backend_tokenizer
    if header.keys["tokenizer.ggml.model"] == "gpt2":
        assert rule is not None, "checked above"
        backend.pre_tokenizer = _splitter(rule)
        backend.model.ignore_merges = rule == _LLAMA3  # a word that is a token is that token
    elif not header.keys.get("tokenizer.ggml.add_space_prefix", True):
        from tokenizers import decoders, pre_tokenizers

        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save_pretrained(folder)


def _splitter(rule: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if rule == _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if rule == _DIGITS:
        first: Any = pre_tokenizers.Digits(individual_digits=True)
    else:
        first = pre_tokenizers.Split(Regex(rule), behavior="isolated")
    return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule == _DIGITS)])
