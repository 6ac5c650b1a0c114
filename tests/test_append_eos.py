"""With `data.append_eos` every document ends with the EOS token, wherever its end lies, and nothing else does."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_chats import TEMPLATE, chats, written
from test_data import BOS, byte_level, data, stories, write
from transformers import PreTrainedTokenizerFast

from nas.errors import TextError
from nas.text.files import STRETCH_CHARACTERS
from nas.text.kept_tokens import TokenFolder, load_tokens
from nas.text.tokens import SPLITS, Tokens

EOS = "zz"
"""A token of the small vocabulary that no text here holds."""


def with_eos(bos: bool = True, eos: str = EOS) -> PreTrainedTokenizerFast:
    tokenizer = byte_level(bos)
    tokenizer.add_special_tokens({"eos_token": eos})
    return tokenizer


VOCABULARY_WITH_EOS = len(with_eos())
SIZES = {"distillation_tokens": 4096, "score_tokens": 2048, "evaluation_tokens": 2048}
"""A document has some 250 tokens."""


def load(path: Path, tokenizer: PreTrainedTokenizerFast, kept: TokenFolder | None = None, **given: object) -> Tokens:
    asked = data(**{"train": [path], "append_eos": True, **SIZES, **given})
    return load_tokens(asked, tokenizer, VOCABULARY_WITH_EOS, kept)


def text_of(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> str:
    """That of all three sets, in the order in which they were drawn, but for the ragged tails."""
    return "".join(
        tokenizer.decode(ids.ravel().tolist()) for ids in (tokens.evaluation, tokens.score, tokens.distillation)
    )


@pytest.mark.parametrize("form", ["separated", "files", "rows"])
@pytest.mark.parametrize("bos", [True, False])
def test_every_document_ends_with_eos(form: str, bos: bool, tmp_path: Path) -> None:
    documents, tokenizer = stories(100), with_eos(bos)
    if form == "separated":
        train = [write(tmp_path / "all.txt", documents)]
    elif form == "files":
        train = [write(tmp_path / f"{index}.txt", [text]) for index, text in enumerate(documents)]
    else:
        train = [tmp_path / "all.jsonl"]
        train[0].write_text("\n".join(json.dumps({"text": f"{text}\n"}) for text in documents))
    tokens = load(train[0], tokenizer, train=train)
    opening = BOS if bos else ""
    for split in ("evaluation", "score", "distillation"):
        *whole, cut_off = tokenizer.decode(getattr(tokens, split).ravel().tolist()).split(EOS)
        assert len(whole) >= 3
        assert all(text.removeprefix(opening) in documents and text.startswith(opening) for text in whole)
        assert any(f"{opening}{text}".startswith(cut_off) for text in documents)


def test_only_the_last_piece_of_a_long_document_ends_with_eos(tmp_path: Path) -> None:
    """A book of more than one stretch, with a tail of blank lines, beside short documents."""
    short, tokenizer = stories(20), with_eos()
    book = "\n".join(stories(1500, seed=1))
    assert len(book) > STRETCH_CHARACTERS
    held = sum(len(tokenizer(text)["input_ids"]) for text in (book, *short))
    (tmp_path / "book.txt").write_text(book + "\n" * STRETCH_CHARACTERS + "<|endoftext|>" + "<|endoftext|>".join(short))
    tokens = load(tmp_path / "book.txt", tokenizer, distillation_tokens=held - 2 * 2048)
    ended = [text.rpartition(BOS)[2] for text in text_of(tokens, tokenizer).split(EOS)[:-1]]
    of_the_book = [text for text in ended if text.startswith("s1")]
    assert len(of_the_book) == 1
    assert book.endswith(of_the_book[0])
    assert len(ended) == 21


def test_a_chat_ends_with_eos_once(tmp_path: Path) -> None:
    """Whether or not the template writes it."""
    file = written(tmp_path / "chats.jsonl", [*chats()])
    asked = {"train": {"dataset": str(file), "column": "messages"}, "sequence_length": 128}
    for template in (TEMPLATE, TEMPLATE + "{{ eos_token }}\n"):
        tokenizer = with_eos()
        tokenizer.chat_template = template
        tokens = load(file, tokenizer, **asked)
        stream, eos = tokens.distillation.ravel(), tokenizer.eos_token_id
        starts = np.flatnonzero(stream == tokenizer.bos_token_id)
        assert len(starts) > 3
        assert (stream[starts[1:] - 1] == eos).all()
        assert np.count_nonzero(stream == eos) in (len(starts) - 1, len(starts))


def test_one_token_between_documents_where_bos_is_eos(tmp_path: Path) -> None:
    path, tokenizer = write(tmp_path / "all.txt", stories(100)), with_eos(eos=BOS)
    ended = load(path, tokenizer)
    joined = load(path, tokenizer, append_eos=False)
    assert [ended.digest(split) for split in SPLITS] == [joined.digest(split) for split in SPLITS]


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"^data.append_eos: the parent's tokenizer has no EOS token; name it"):
        load(write(tmp_path / "all.txt", stories(100)), byte_level(bos=True))


def test_sets_with_and_without_eos_are_kept_apart(tmp_path: Path) -> None:
    path, tokenizer = write(tmp_path / "all.txt", stories(100)), with_eos()
    kept = TokenFolder(tmp_path / "tokens", "one")
    joined = load(path, tokenizer, kept, append_eos=False)
    ended = load(path, tokenizer, kept)
    assert tokenizer.eos_token_id not in joined.distillation
    assert tokenizer.eos_token_id in ended.distillation
    assert ended.digest("score") != joined.digest("score")


def test_where_documents_end_names_their_sets(tmp_path: Path) -> None:
    """The same stretches of text, as one document and as two."""
    tokenizer = with_eos()
    stretch = " ".join(stories(1000))[: STRETCH_CHARACTERS - 1]
    other = stretch.replace("s0", "s1")
    kept = TokenFolder(tmp_path / "tokens", "one")
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text(json.dumps({"text": f"{stretch} {other}"}))
    two.write_text("\n".join(json.dumps({"text": text}) for text in (stretch, other)))
    folders = {load(path, tokenizer, kept).files["score"].path.parent for path in (one, two)}
    assert len(folders) == 2
