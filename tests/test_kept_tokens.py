"""Tokens that were made stay in the home: they are read again, whole or not at all, and by every worker."""

import json
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
from test_data import BOS, VOCABULARY, byte_level, data, stories, write
from transformers import BatchEncoding, PreTrainedTokenizerFast

from nas.text.kept_tokens import TokenFolder, load_tokens
from nas.text.token_files import digest_of
from nas.text.tokenizer import tokenizer_digest
from nas.text.tokens import SPLITS


class Counting(PreTrainedTokenizerFast):
    """Counts the texts that it gets, and gives up on the first one if it is told to."""

    texts = 0
    fails = False

    def __call__(self, text: list[str], **how: bool) -> BatchEncoding:  # type: ignore[override]
        if self.fails:
            raise KeyboardInterrupt
        self.texts += len(text)
        return super().__call__(text, **how)


@pytest.fixture
def tokenizer() -> Counting:
    return Counting(tokenizer_object=byte_level(bos=True).backend_tokenizer, bos_token=BOS)


def test_what_was_tokenised_is_read_again(tmp_path: Path, tokenizer: Counting) -> None:
    kept = TokenFolder(tmp_path / "tokens", "one")
    asked = data(train=[write(tmp_path / "all.txt", stories(100)), write(tmp_path / "empty.txt", [""])])
    first = load_tokens(asked, tokenizer, VOCABULARY, kept)
    tokenised = tokenizer.texts
    again = load_tokens(asked, tokenizer, VOCABULARY, kept)
    assert tokenizer.texts == tokenised > 0
    assert again.describe() == first.describe() == load_tokens(asked, tokenizer, VOCABULARY).describe()
    for split in SPLITS:
        ids = getattr(again, split)
        assert np.array_equal(ids, getattr(first, split))
        assert (ids.dtype, ids.flags.writeable) == (np.int32, False)
        assert again.digest(split) == digest_of(ids)


def test_what_decides_the_tokens_names_their_folder(tmp_path: Path, tokenizer: Counting) -> None:
    train = write(tmp_path / "all.txt", stories(100))
    one, other = (TokenFolder(tmp_path / "tokens", name) for name in ("one", "other"))
    for kept, given in ((one, {}), (other, {}), (one, {"sequence_length": 16}), (one, {"score_tokens": 512})):
        before = tokenizer.texts
        load_tokens(data(train=[train], **given), tokenizer, VOCABULARY, kept)
        assert tokenizer.texts > before
    train.write_text(train.read_text(encoding="utf-8").replace("s0d7w", "s0d7v"), encoding="utf-8")
    before = tokenizer.texts
    load_tokens(data(train=[train]), tokenizer, VOCABULARY, one)
    assert tokenizer.texts > before


def test_sets_appear_whole_or_not_at_all(tmp_path: Path, tokenizer: Counting) -> None:
    kept = TokenFolder(tmp_path / "tokens", "one")
    asked = data(train=[write(tmp_path / "all.txt", stories(100))])
    tokenizer.fails = True
    with pytest.raises(KeyboardInterrupt):
        load_tokens(asked, tokenizer, VOCABULARY, kept)
    assert not [path for path in kept.path.iterdir() if path.is_dir()]
    tokenizer.fails = False
    tokens = load_tokens(asked, tokenizer, VOCABULARY, kept)
    (folder,) = (path for path in kept.path.iterdir() if path.is_dir())
    assert tokens.files["score"].path.parent == folder


def test_text_of_which_more_had_to_be_read_is_kept_too(tmp_path: Path, tokenizer: Counting) -> None:
    blank = "\n".join(json.dumps({"text": " " * 1000}) for _ in range(17_000))
    text = "\n".join(json.dumps({"text": text}) for text in stories(100))
    (tmp_path / "late.jsonl").write_text(f"{blank}\n{text}")
    kept = TokenFolder(tmp_path / "tokens", "one")
    first = load_tokens(data(train=[tmp_path / "late.jsonl"]), tokenizer, VOCABULARY, kept)
    tokenised = tokenizer.texts
    again = load_tokens(data(train=[tmp_path / "late.jsonl"]), tokenizer, VOCABULARY, kept)
    assert (first.share_read, again.share_read, tokenizer.texts) == (1, 1, tokenised)


def test_a_worker_opens_the_file_itself(tmp_path: Path, tokenizer: Counting) -> None:
    """The value that goes to it is small, and what it writes stays its own."""
    asked = data(train=[write(tmp_path / "all.txt", stories(100))])
    tokens = load_tokens(asked, tokenizer, VOCABULARY, TokenFolder(tmp_path / "tokens", "one"))
    for split in SPLITS:
        sent = pickle.dumps(tokens.files[split])
        assert len(sent) < 1000
        ids = pickle.loads(sent).opened()
        assert digest_of(ids) == tokens.digest(split)
        ids[:] = 0
    assert digest_of(tokens.files["score"].opened()) == tokens.digest("score") == digest_of(tokens.score)


def test_the_tokenizers_files_decide_its_digest(tmp_path: Path) -> None:
    for name, bos in (("one", True), ("same", True), ("other", False)):
        byte_level(bos).save_pretrained(tmp_path / name)
    digests = [tokenizer_digest(tmp_path / name) for name in ("one", "same", "other")]
    assert digests[0] == digests[1] != digests[2]


def test_a_full_disk_is_named_with_the_folder(tmp_path: Path, tokenizer: Counting) -> None:
    """Here the limit of a file's size stands for it. Nothing of the sets is left."""
    train = write(tmp_path / "book.txt", stories(400))
    kept = TokenFolder(tmp_path / "tokens", "one")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=str(kept.path)):
            load_tokens(data(train=[train]), tokenizer, VOCABULARY, kept)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in kept.path.iterdir() if not path.name.endswith(".lock")] == []
