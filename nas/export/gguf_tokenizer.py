"""A Hugging Face tokenizer as the vocabulary of a GGUF file.

Two algorithms of llama.cpp: BPE over bytes (`gpt2`), and SentencePiece's BPE with a byte for each unknown character
(`llama`). It keeps its own code for both, so whoever writes a file compares the ids (`verify_gguf.py`).
"""

import json
import re
from typing import Any, Literal

from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from blocklib.formats.gguf_vocabulary import Vocabulary
from nas.errors import UnsupportedExportError
from nas.text.pre_tokenizers import pre_tokenizer_name

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"
_FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """`size` is the model's; ids beyond the tokenizer's are marked as unused.

    Raises UnsupportedExportError for an algorithm that is neither, and for more tokens than the model has.
    """
    description = _description(tokenizer)
    model = description["model"]
    if model["type"] != "BPE":
        raise UnsupportedExportError(f"GGUF export of a {model['type']} tokenizer is not known here; export as hf")
    if len(tokenizer) > size:
        raise UnsupportedExportError(f"the tokenizer has {len(tokenizer)} tokens, and the model {size}; export as hf")
    is_sentencepiece = bool(model.get("byte_fallback"))
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    tokens, types = _tokens(tokenizer, size, is_sentencepiece)
    return Vocabulary(
        model="llama" if is_sentencepiece else "gpt2",
        pre="default" if is_sentencepiece else pre_tokenizer_name(description),
        tokens=tokens,
        types=types,
        merges=() if is_sentencepiece else tuple(" ".join(merge) for merge in merges),
        scores=_scores(tokens, merges) if is_sentencepiece else (),
        ids=_special_ids(tokenizer),
        adds_bos=_adds(tokenizer, first=True),
        adds_eos=_adds(tokenizer, first=False),
        adds_space=_adds_space(description) if is_sentencepiece else False,
        chat_template=_chat_template(tokenizer),
    )


def normalisation_of(tokenizer: PreTrainedTokenizerBase) -> Literal["NFC", "NFD", "NFKC", "NFKD"] | None:
    """The Unicode normalisation, such as NFC, that the tokenizer does first and llama.cpp does not."""
    normaliser = _description(tokenizer).get("normalizer") or {}
    return next((form for form in _FORMS if normaliser.get("type") == form), None)


def _description(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Its tokenizer.json."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedExportError("GGUF export reads a tokenizer.json, which this tokenizer has not; export as hf")
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def _tokens(
    tokenizer: PreTrainedTokenizerBase, size: int, is_sentencepiece: bool
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    """Every token by its id, and its type."""
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for index in range(size):
        token, type = by_id.get(index, f"[PAD{index}]"), TokenType.NORMAL
        if index not in by_id:
            type = TokenType.UNUSED
        elif is_sentencepiece and index == tokenizer.unk_token_id:
            type = TokenType.UNKNOWN
        elif index in added:
            type = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
            token = token if added[index].special else token.replace(_SPACE, " ")
        elif is_sentencepiece and _BYTE.fullmatch(token):
            type = TokenType.BYTE
        tokens.append(token)
        types.append(type)
    return tuple(tokens), tuple(types)


def _scores(tokens: tuple[str, ...], merges: list[tuple[str, ...]]) -> tuple[float, ...]:
    """SentencePiece merges the pair whose token has the highest score first: minus the first merge that makes it."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge), rank)
    return tuple(-float(ranks.get(token, len(merges))) for token in tokens)


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, int], ...]:
    found = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad", "unk")}
    return tuple((role, int(index)) for role, index in found.items() if index is not None)


def _adds(tokenizer: PreTrainedTokenizerBase, first: bool) -> bool:
    """Whether the first token of a text is the one that begins texts, or the last the one that ends them."""
    special = tokenizer.bos_token_id if first else tokenizer.eos_token_id
    ids = tokenizer("a")["input_ids"]
    return special is not None and bool(ids) and ids[0 if first else -1] == special


def _adds_space(description: dict[str, Any]) -> bool:
    """Whether a space is put before a text: by a normaliser, or by the Metaspace pre-tokenizer."""
    normaliser = description.get("normalizer") or {}
    steps = normaliser.get("normalizers") or [normaliser]
    metaspace = description.get("pre_tokenizer") or {}
    prepended = any(step.get("type") == "Prepend" and step.get("prepend") == _SPACE for step in steps)
    return prepended or metaspace.get("prepend_scheme") in ("always", "first")


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template: Any = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template
