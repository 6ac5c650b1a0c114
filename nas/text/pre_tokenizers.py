r"""llama.cpp's names for the ways in which BPE tokenizers split text before they merge bytes.

A GGUF file cannot say how: it names a set of regular expressions that llama.cpp has built in (`llama-vocab.cpp`). Here
a tokenizer's own way, as its tokenizer.json spells it, is brought to a list of expressions and looked up. A name that
fits is still checked: the export compares token ids on a long text.
"""

from collections.abc import Mapping
from typing import Any

from nas.errors import UnsupportedExportError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The expression of the ByteLevel pre-tokenizer of the tokenizers library."""
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_SLASHED = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((r"\p{N}", _GPT2), False): "smollm",
    ((_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,), True): "llama-bpe",
    ((_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,), False): "smaug-bpe",
    ((_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST,), False): "qwen2",
    ((f"{_CASES[0]}|{_CASES[1]}" + r"|\p{N}" + _SLASHED,), True): "tekken",
    ((f"{_CASES[0]}{_CONTRACTIONS}?|{_CASES[1]}{_CONTRACTIONS}?" + r"|\p{N}{1,3}" + _SLASHED,), False): "gpt-4o",
}
"""By the expressions, and by whether a piece that is a token needs no merging (`ignore_merges`)."""


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a tokenizer.json. Raises UnsupportedExportError where none is known."""
    model, steps = tokenizer["model"], _steps(tokenizer["pre_tokenizer"])
    name = _NAMES.get((steps, bool(model.get("ignore_merges"))))
    if name is None:
        raise UnsupportedExportError(
            f"the tokenizer splits text by {' then '.join(steps) or 'nothing'}, for which this export knows no name of "
            "llama.cpp's; export as hf"
        )
    return name


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The expressions, in order, at whose matches text is cut; other steps by their type."""
    match pre_tokenizer:
        case None:
            return ()
        case {"type": "Sequence", "pretokenizers": steps}:
            return tuple(expression for step in steps for expression in _steps(step))
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return (_GPT2,) if regex else ()
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return (_GPT2,)
        case {"type": "Digits", "individual_digits": True}:
            return (r"\p{N}",)
        case {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": expression}}:
            return (expression,)
    return (f"<{pre_tokenizer['type']}>",)
