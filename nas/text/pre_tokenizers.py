r"""llama.cpp's names for the ways in which BPE tokenizers cut text into words before they merge bytes.

A GGUF file does not say how: it names a rule that llama.cpp has built in. The table holds each rule as the expressions
of a tokenizer.json, and is read both ways. An export is still checked: llama.cpp's own expressions are near to these,
not always equal, so token ids are compared on a long text. Source of names and flags: `llama-vocab.cpp` of llama.cpp.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas.errors import UnsupportedExportError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The expression of the ByteLevel pre-tokenizer of the tokenizers library."""
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_SLASHED = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class WordRule:
    """`names` are llama.cpp's, the first is the one to write. Text is cut at the matches of each of the `expressions`,
    in order. `takes_whole_words`: a word that is a token is not merged (`ignore_merges`). `adds_bos`: llama.cpp begins
    a text with its first special token, unless the file says otherwise."""

    names: tuple[str, ...]
    expressions: tuple[str, ...]
    takes_whole_words: bool = False
    adds_bos: bool = False


_RULES = (
    WordRule(("gpt-2", "mpt", "olmo", "jais", "phi-2"), (_GPT2,)),
    WordRule(("smollm", "starcoder", "refact", "command-r", "codeshell"), (r"\p{N}", _GPT2)),
    WordRule(("llama-bpe", "llama3", "llama-v3", "falcon3"), (_WORDS + r"|\p{N}{1,3}" + _REST,), True, True),
    WordRule(("smaug-bpe",), (_WORDS + r"|\p{N}{1,3}" + _REST,)),
    WordRule(("qwen2", "deepseek-r1-qwen"), (_WORDS + r"|\p{N}" + _REST,)),
    WordRule(("tekken",), (f"{_CASES[0]}|{_CASES[1]}" + r"|\p{N}" + _SLASHED,), True, True),
    WordRule(
        ("gpt-4o",),
        (f"{_CASES[0]}{_CONTRACTIONS}?|{_CASES[1]}{_CONTRACTIONS}?" + r"|\p{N}{1,3}" + _SLASHED,),
    ),
)
WORD_RULES: Mapping[str, WordRule] = {name: rule for rule in _RULES for name in rule.names}
"""The rules by each of llama.cpp's names."""


def splitter(rule: WordRule) -> Any:
    """The rule as a pre-tokenizer of the tokenizers library, which also writes bytes as letters."""
    from tokenizers import Regex, pre_tokenizers

    ends_as_gpt2 = rule.expressions[-1] == _GPT2
    cuts = rule.expressions[:-1] if ends_as_gpt2 else rule.expressions
    steps: list[Any] = [pre_tokenizers.Split(Regex(cut), behavior="isolated") for cut in cuts]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=ends_as_gpt2)])


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a tokenizer.json. Raises UnsupportedExportError where none is known."""
    expressions = _expressions(tokenizer["pre_tokenizer"])
    asked = expressions, bool(tokenizer["model"].get("ignore_merges"))
    for rule in _RULES:
        if (rule.expressions, rule.takes_whole_words) == asked:
            return rule.names[0]
    raise UnsupportedExportError(
        f"the tokenizer splits text by {' then '.join(expressions) or 'nothing'}, for which this export knows no name "
        "of llama.cpp's; export as hf"
    )


def _expressions(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The expressions, in order, at whose matches text is cut; other steps by their type."""
    match pre_tokenizer:
        case None:
            return ()
        case {"type": "Sequence", "pretokenizers": steps}:
            return tuple(expression for step in steps for expression in _expressions(step))
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return (_GPT2,) if regex else ()
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return (_GPT2,)
        case {"type": "Digits", "individual_digits": True}:
            return (r"\p{N}",)
        case {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": expression}}:
            return (expression,)
    return (f"<{pre_tokenizer['type']}>",)
