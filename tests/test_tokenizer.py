"""A checkpoint's tokenizer: every fault of its files by file, cause and remedy; code of its own only where allowed."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from checkpoints import LFS_POINTER, configure, tokenizer

from blocklib.errors import CheckpointError
from nas.text.tokenizer import check_tokenizer, load_tokenizer

TEXT = "the quick fox"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer().save_pretrained(tmp_path / "parent")
    configure(tmp_path / "parent", model_type="llama")
    return tmp_path / "parent"


def refused(folder: Path) -> str:
    with pytest.raises((CheckpointError, FileNotFoundError)) as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_it_loads(folder: Path) -> None:
    assert load_tokenizer(folder)(TEXT)["input_ids"] == tokenizer()(TEXT)["input_ids"]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_pointer_of_git_lfs(name: str, folder: Path) -> None:
    (folder / name).write_text(LFS_POINTER)
    assert refused(folder).startswith(f"{folder / name}: is a git-lfs pointer")


def test_a_cut_file(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[: len(text) // 2])
    assert refused(folder).startswith(f"{folder / 'tokenizer.json'}: is not JSON, or cut: line ")


def test_a_model_newer_than_the_library(folder: Path) -> None:
    known = json.loads((folder / "tokenizer.json").read_text())
    configure(folder, "tokenizer.json", model=known["model"] | {"type": "BPEv2"})
    said = refused(folder)
    assert re.match(rf"{re.escape(str(folder))}/tokenizer.json: tokenizers [\d.]+ cannot read it.*'BPEv2'", said)
    assert "pip install -U tokenizers" in said


def test_no_tokenizer_at_all(folder: Path) -> None:
    for file in folder.glob("*tok*"):
        file.unlink()
    assert refused(folder).startswith(f"{folder} holds no tokenizer")


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone").startswith(f"{tmp_path / 'gone'} is gone")


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_sentencepiece_is_what_is_missing(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    said = refused(folder)
    assert said.startswith(f"{folder / 'tokenizer.model'}: is a SentencePiece model")
    assert "pip install sentencepiece" in said


@pytest.mark.skipif(find_spec("tiktoken") is not None, reason="tiktoken is installed")
def test_tiktoken_is_what_is_missing(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")
    assert "pip install tiktoken" in refused(folder)


# --- code -----------------------------------------------------------------------------------------------------------


def with_code(folder: Path) -> Path:
    """A tokenizer whose class is code beside it; returns the file that shows that it ran."""
    ran = folder / "CODE_RAN"
    (folder / "tokenization_own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import PreTrainedTokenizerFast\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    configure(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]})
    return ran


def never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))


def test_code_is_passed_by_where_transformers_has_a_class(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_asked(monkeypatch)
    ran = with_code(folder)
    loaded = load_tokenizer(folder)
    assert loaded(TEXT)["input_ids"] == tokenizer()(TEXT)["input_ids"]
    assert not ran.exists()
    # The written tokenizer points at no code either.
    loaded.save_pretrained(tmp_path / "out")
    assert "auto_map" not in (tmp_path / "out/tokenizer_config.json").read_text()


def test_code_that_would_be_needed_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_asked(monkeypatch)
    ran = with_code(folder)
    (folder / "tokenizer.json").unlink()
    said = refused(folder)
    assert said.startswith(f"{folder / 'tokenizer_config.json'}: its tokenizer is code of its own (auto_map)")
    assert "allow_remote_code: true" in said
    assert "trust_remote_code" not in said
    with pytest.raises(CheckpointError):
        check_tokenizer(folder)
    assert not ran.exists()


def test_code_is_run_where_it_is_allowed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_asked(monkeypatch)
    ran = with_code(folder)
    loaded = load_tokenizer(folder, allow_remote_code=True)
    assert type(loaded).__name__ == "OwnTokenizer"
    assert loaded(TEXT)["input_ids"] == tokenizer()(TEXT)["input_ids"]
    assert ran.exists()
    # An export carries it along.
    loaded.save_pretrained(tmp_path / "out")
    assert load_tokenizer(tmp_path / "out", allow_remote_code=True)(TEXT)["input_ids"] == loaded(TEXT)["input_ids"]
