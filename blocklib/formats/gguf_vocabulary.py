"""The vocabulary of a GGUF file, as llama.cpp keeps it, and one without meaning for models that are only timed."""

from dataclasses import dataclass

from gguf import GGUFWriter, TokenType


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id. `model` is llama.cpp's name of the algorithm: `gpt2` (BPE over bytes, by `merges`) or `llama`
    (SentencePiece, by `scores`); `pre` its name of the way text is split before that.

    `ids` are special tokens by role: bos, eos, pad, unk. `adds_space`: a space is put before a text.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    ids: tuple[tuple[str, int], ...] = ()
    adds_bos: bool = False
    adds_eos: bool = False
    adds_space: bool | None = None
    chat_template: str | None = None


def dummy_vocabulary(size: int) -> Vocabulary:
    """A vocabulary of any size that llama.cpp loads. Its tokens mean nothing; prompts are given as ids. Each is whole
    text, since llama.cpp's server waits for the rest of a character."""
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", *(f"t{index}" for index in range(4, size))]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    types += [TokenType.NORMAL] * (len(tokens) - len(types))
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tuple(tokens[:size]),
        types=tuple(types[:size]),
        scores=(0.0,) * size,
        ids=tuple((role, index) for index, role in enumerate(("unk", "bos", "eos")) if index < size),
    )


def add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    """Its keys, as `tokenizer.*`."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    for role, index in vocabulary.ids:
        getattr(writer, f"add_{role}_token_id")(index)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    if vocabulary.adds_space is not None:
        writer.add_add_space_prefix(vocabulary.adds_space)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
