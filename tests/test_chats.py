"""Records of messages become text as the parent's chat template writes it."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from test_data import BOS, VOCABULARY, byte_level, data, stories
from transformers import PreTrainedTokenizerFast

from nas.errors import TextError
from nas.text.kept_tokens import load_tokens
from nas.text.tokens import SPLITS, Dropped, Tokens

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'tool' %}"
    "{{ raise_exception('no tools, please') }}{% endif %}<{{ message.role }}>{{ message.content }}</{{ message.role }}>"
    "{% endfor %}{{ strftime_now('%Y-%m-%d') }}"
)
SYSTEM = " ".join(f"Rule{number}" for number in range(30))
"""Longer than what may stand in two texts by chance."""


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    made = byte_level(bos=True)
    made.chat_template = TEMPLATE
    return made


def chats() -> list[list[dict[str, str]]]:
    return [
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text[:90]},
         {"role": "assistant", "content": f"{text}<|endoftext|>"}]
        for text in stories(100)
    ]  # fmt: skip


def expected(chat: list[dict[str, str]]) -> str:
    turns = "".join(f"<{message['role']}>{message['content']}</{message['role']}>" for message in chat)
    return f"{turns}2024-07-26"


def written(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(json.dumps({"messages": row, "id": 1}) for row in rows), encoding="utf-8")
    return path


def load(path: Path, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    return load_tokens(
        data(train={"dataset": str(path), "column": "messages"}, sequence_length=128), tokenizer, VOCABULARY
    )


def test_every_chat_is_what_the_template_makes_of_it(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """On every day the same; no separator cuts it, and no rule that all chats share is taken out of it."""
    tokens = load(written(tmp_path / "chats.jsonl", [*chats()]), tokenizer)
    texts = {expected(chat) for chat in chats()}
    for split in SPLITS:
        opening, *middle, cut_off = tokenizer.decode(getattr(tokens, split).ravel().tolist()).split(BOS)
        assert opening == ""
        assert set(middle) <= texts
        assert any(text.startswith(cut_off) for text in texts)
    assert tokens.dropped == Dropped()


def test_rows_of_parquet_and_of_one_json_are_the_same_chats(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    pa.parquet.write_table(pa.table({"messages": chats()}), tmp_path / "chats.parquet")
    (tmp_path / "chats.json").write_text(json.dumps([{"messages": chat} for chat in chats()]))
    lines = load(written(tmp_path / "chats.jsonl", [*chats()]), tokenizer)
    for name in ("chats.parquet", "chats.json"):
        tokens = load(tmp_path / name, tokenizer)
        assert [tokens.digest(split) for split in SPLITS] == [lines.digest(split) for split in SPLITS]


def test_a_parent_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "chats.jsonl", [*chats()])
    with pytest.raises(TextError, match=r"data.train: .*chats.jsonl, line 1 is a chat, and .* has no chat template"):
        load(file, byte_level(bos=True))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([{"role": "tool", "content": "x"}], "line 101: the parent's chat template refuses it: no tools, please"),
        ([{"from": "human", "value": "x"}], "line 101: 'messages' is a list, not text"),
        ({"role": "user", "content": "x"}, "line 101: 'messages' is an object, not text"),
    ],
)
def test_a_record_that_is_no_chat_is_named(
    row: object, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(TextError, match=message):
        load(written(tmp_path / "chats.jsonl", [*chats(), row]), tokenizer)
