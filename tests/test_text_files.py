"""Text in every form people keep it in is read as the text it is, or refused with its file, its cause and a remedy."""

import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_data import SHARED, VOCABULARY, byte_level, data, stories, write
from transformers import PreTrainedTokenizerFast

from nas.errors import TextError
from nas.job.config import load
from nas.text.files import STRETCH_CHARACTERS, TextFile
from nas.text.kept_tokens import load_tokens
from nas.text.tokens import SPLITS, Tokens

STORIES = [f"{text}\n\nThe caf\u00e9 of {text[:4]}, \u201cnaturally\u201d." for text in stories(100)]
PLAIN = "<|endoftext|>".join(STORIES)
ROWS = [{"number": index, "text": text} for index, text in enumerate(STORIES)]
LINES = "\n".join(map(json.dumps, ROWS))
TABLE = pa.table({"number": list(range(100)), "text": STORIES})


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def table(delimiter: str) -> str:
    """With line ends within fields."""
    return "\n".join([f"number{delimiter}text", *(f"{row['number']}{delimiter}{quoted(row['text'])}" for row in ROWS)])


def arrow(new: Callable[..., pa.ipc.RecordBatchStreamWriter]) -> bytes:
    sink = pa.BufferOutputStream()
    with new(sink, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=30)
    return sink.getvalue().to_pybytes()


def parquet(written: pa.Table = TABLE) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(written, sink, row_group_size=30)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level(bos=True)


def digests(tokens: Tokens) -> list[str]:
    return [tokens.digest(split) for split in SPLITS]


@pytest.fixture(scope="module")
def as_plain(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The digests of the same documents in a plain file."""
    path = write(tmp_path_factory.mktemp("plain") / "all.txt", STORIES)
    return digests(load_tokens(data(train=[path]), tokenizer, VOCABULARY))


READ = {
    "bom.txt": b"\xef\xbb\xbf" + PLAIN.encode(),
    "joined.txt": PLAIN.replace("<|endoftext|>", "<|endoftext|>\ufeff").encode(),
    "utf16.txt": PLAIN.encode("utf-16"),
    "utf16be.txt": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "utf32.txt": PLAIN.encode("utf-32"),
    "windows.txt": PLAIN.replace("\n", "\r\n").encode(),
    "mac.txt": PLAIN.replace("\n", "\r").encode(),
    "x.jsonl": LINES.encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode(),
    "utf16.jsonl": LINES.encode("utf-16"),
    "blank_lines.ndjson": LINES.replace("\n", "\n\n").encode(),
    "unseparated.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode(),
    "lines_of_other_name.txt": LINES.encode(),
    "lines.json": LINES.encode(),
    "list.json": json.dumps(ROWS).encode(),
    "indented.json": json.dumps(ROWS, indent=2).encode(),
    "list_of_other_name.txt": json.dumps(ROWS, indent=2).encode(),
    "columns.json": json.dumps({"text": STORIES}).encode(),
    "x.csv": table(",").encode(),
    "semicolon.csv": b"\xef\xbb\xbf" + table(";").replace("\n", "\r\n").encode(),
    "x.tsv": table("\t").encode(),
    "x.parquet": parquet(),
    "dictionary.parquet": parquet(pa.table({"text": pa.array(STORIES).dictionary_encode()})),
    "parquet_of_other_name.txt": parquet(),
    "x.arrow": arrow(pa.ipc.new_stream),
    "file.arrow": arrow(pa.ipc.new_file),
    "x.txt.gz": gzip.compress(PLAIN.encode()),
    "packed_of_other_name.txt": gzip.compress(PLAIN.encode()),
    "unpacked_on_the_way.txt.gz": PLAIN.encode(),
    "two_members.jsonl.gz": gzip.compress(LINES[:5000].encode()) + gzip.compress(LINES[5000:].encode()),
    "x.txt.bz2": bz2.compress(PLAIN.encode()),
    "x.csv.xz": lzma.compress(table(",").encode()),
    "x.jsonl.zst": pa.compress(LINES.encode(), "zstd", asbytes=True),
}


@pytest.mark.parametrize("name", READ)
def test_every_form_of_a_text_is_the_same_text(
    name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, as_plain: list[str]
) -> None:
    (tmp_path / name).write_bytes(READ[name])
    tokens = load_tokens(data(train=[tmp_path / name]), tokenizer, VOCABULARY)
    assert digests(tokens) == as_plain
    assert list(tokens.sources) == [name]


REFUSED = {
    "latin.txt": ("a\nb\nc\u00e9\n".encode("latin-1"), "line 3: byte 0xe9 is not UTF-8 .* 'é'.*convert the file"),
    "latin.jsonl": (LINES.encode() + b'\n{"text": "\xe9"}', "line 101: byte 0xe9 is not UTF-8"),
    "latin.csv": (b"text\nyes\n\xe9\n", "line 3: byte 0xe9 is not UTF-8"),
    "late.txt": (b"x\n" * 500_000 + b"\xff", "line 500001: byte 0xff is not UTF-8"),
    "cut_character.txt": ("abc\né".encode()[:-1], "line 2: the file ends within a character, so a part is missing"),
    "unmarked.txt": (PLAIN.encode("utf-16-le"), "looks like UTF-16 without a byte order mark; convert it"),
    "cut.jsonl": (LINES[:-9].encode(), "line 100 is not JSON: .*; it is cut; fetch the file again"),
    "broken.jsonl": (LINES.replace('"number": 7,', '"number": 7;').encode(), "line 8 is not JSON.*; mend or remove it"),
    "lists.jsonl": (b'["a"]\n["b"]', "line 1 is a list, not an object"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000, "line 1: maximum recursion depth"),
    "digits.jsonl": (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "line 1: Exceeds the limit"),
    "number.jsonl": (LINES.encode() + b'\n{"text": 3}', "line 101: 'text' is a number, not text: 3"),
    "chat.jsonl": (b'{"messages": [], "id": 1}', "line 1 has no column 'text'; it has messages, id; write {dataset: "),
    "later.jsonl": (LINES.encode() + b'\n{"id": 3}', "line 101 has no column 'text'; it has id;"),
    "notebook.ipynb": (b'{\n "cells": [],\n "nbformat": 4\n}', "has no column 'text'; it has cells, nbformat"),
    "settings.json": (b'{\n "a": 1\n', "line 3 is not JSON"),
    "other.csv": (b"id,body\n1,a\n", "has no column 'text'; it has id, body; write {dataset: "),
    "cut.csv": (table(",")[:-9].encode(), "line 301: unexpected end of data; it may be cut"),
    "unquoted.csv": (b"id,text\n1,a\n2,a, b\n", "line 3: 3 fields, and the header names 2"),
    "other.parquet": (parquet(pa.table({"id": [1], "body": ["a"]})), "has no column 'text'; it has id, body"),
    "number.parquet": (parquet(pa.table({"text": [1]})), "row 1: 'text' is a number, not text: 1"),
    "cut.parquet": (parquet()[:-500], "cannot be read: Parquet magic bytes not found"),
    "no.parquet": (PLAIN.encode(), "is named .parquet, but is not a Parquet file"),
    "packed.parquet.gz": (gzip.compress(parquet()), "is a compressed Parquet file"),
    "cut.arrow": (arrow(pa.ipc.new_stream)[:-3000], "is damaged or cut"),
    "cut.txt.gz": (gzip.compress(PLAIN.encode())[:-50], "is damaged or cut: .*; fetch it again"),
    "damaged.txt.gz": (gzip.compress(PLAIN.encode())[:-8] + b"checksum", "is damaged or cut: CRC check failed"),
    "cut.txt.bz2": (bz2.compress(PLAIN.encode())[:-50], "is damaged or cut"),
    "cut.txt.xz": (lzma.compress(PLAIN.encode())[:-50], "is damaged or cut"),
    "cut.txt.zst": (pa.compress(PLAIN.encode(), "zstd", asbytes=True)[:-50], "is damaged or cut"),
    "page.html": (b"<!DOCTYPE html>\n<html><body>Yes.", "is HTML or XML, and the model would learn the tags as text"),
    "page_of_other_name.txt": (b"\n<html lang='en'>Yes.", "is HTML or XML"),
    "dump.xml": (b"\xef\xbb\xbf<?xml version='1.0'?><a>Yes.</a>", "is HTML or XML"),
    "pointer.txt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.*git lfs pull"),
    "report.pdf": (b"%PDF-1.7\n\xe2\xe3", "is a PDF; export its text"),
    "letter.docx": (b"PK\x03\x04\x00\x00", "is a zip archive .*; unpack it"),
    "all.tar.gz": (gzip.compress(b"a.txt".ljust(257, b"\x00") + b"ustar\x0000" + bytes(248)), "is a tar archive"),
    "weights.bin": (b"\x80\x02\x8a", "is a binary file"),
    "unknown.txt": (b"text\x00\x01\x02", "is a binary file: it holds zero bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named_with_its_cause(
    name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=rf"(?s)^data.train: {tmp_path / name}.*{message}"):
        load_tokens(data(train=[tmp_path / name]), tokenizer, VOCABULARY)


LEFT_AS_THEY_ARE = {
    "code.py": '{"a": 1}\nprint("a dictionary on a line of its own")\n',
    "notes.md": '[\n{ "not": json\n]\n\n# And a text\n',
    "links.txt": "[1] A footnote.\n[2] Another.\n",
    "braces.txt": "{ this is prose }\n",
    "tags.txt": "Tags like <html> may be written about.\n",
}


@pytest.mark.parametrize("name", LEFT_AS_THEY_ARE)
def test_text_that_begins_like_data_stays_text(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(LEFT_AS_THEY_ARE[name])
    assert [stretch.text for stretch in TextFile(tmp_path / name).texts(None)] == [LEFT_AS_THEY_ARE[name]]


def test_rows_without_text_are_passed_over(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, as_plain: list[str]
) -> None:
    (tmp_path / "gaps.jsonl").write_text(f'{{"text": null}}\n{LINES}\n{{"text": " "}}\n')
    tokens = load_tokens(data(train=[tmp_path / "gaps.jsonl"]), tokenizer, VOCABULARY)
    assert digests(tokens) == as_plain


def test_half_a_character_breaks_nothing(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    halves = "\n".join(json.dumps({"text": f"{text} \ud83d end"}) for text in STORIES)
    (tmp_path / "halves.jsonl").write_text(halves)
    tokens = load_tokens(data(train=[tmp_path / "halves.jsonl"]), tokenizer, VOCABULARY)
    assert "\ufffd end" in tokenizer.decode(tokens.distillation.ravel().tolist())


@pytest.mark.parametrize("separator", [None, "\n\n\n"])
def test_a_document_without_end_is_read_in_stretches(separator: str | None, tmp_path: Path) -> None:
    text = "\n".join(f"line {index} of a document" for index in range(40_000))
    path = write(tmp_path / "long.txt", [text, "short"], separator="\n\n\n")
    stretches = [stretch.text for stretch in TextFile(path).texts(separator)]
    assert len(stretches) > 2
    assert all(len(stretch) <= STRETCH_CHARACTERS + len("\n\n\n") for stretch in stretches)
    assert all(stretch.endswith("document\n") for stretch in stretches[:2])
    assert (separator or "").join(
        ["".join(stretches[: -1 if separator else None]), "short"][: 2 if separator else 1]
    ) == (f"{text}\n\n\nshort")


def test_the_share_read_grows_to_the_whole(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.parquet", "x.txt.gz", "x.arrow"):
        (tmp_path / name).write_bytes(READ[name])
        shares = [stretch.share for stretch in TextFile(tmp_path / name).texts("<|endoftext|>")]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1, abs=0.05), name


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.txt.zst"])
def test_without_the_library_for_tables_the_extra_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pa.compress(PLAIN.encode(), "zstd", asbytes=True) if name == "x.txt.zst" else READ[name]
    (tmp_path / name).write_bytes(content)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TextError, match=r"pip install 'puzzle-nas\[datasets\]'"):
        list(TextFile(tmp_path / name).texts(None))


# --- data sets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cached")
def test_folders_that_save_to_disk_wrote_are_read(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, as_plain: list[str]
) -> None:
    import datasets

    rows = datasets.Dataset(TABLE)
    rows.save_to_disk(tmp_path / "saved", num_shards=3)
    datasets.DatasetDict(train=rows, test=rows.select(range(3))).save_to_disk(tmp_path / "splits")
    for name in ("saved", "splits"):
        tokens = load_tokens(data(train={"dataset": str(tmp_path / name)}), tokenizer, VOCABULARY)
        assert digests(tokens) == as_plain
    asked = {"dataset": str(tmp_path / "splits"), "split": "validation"}
    with pytest.raises(TextError, match="splits has no split 'validation'; it has train, test"):
        load_tokens(data(train=asked), tokenizer, VOCABULARY)
    with pytest.raises(TextError, match="saved has no column 'body'; it has number, text"):
        load_tokens(data(train={"dataset": str(tmp_path / "saved"), "column": "body"}), tokenizer, VOCABULARY)
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    with pytest.raises(TextError, match=r"saved, as `save_to_disk` writes it, cannot be read.*\.arrow.*save it again"):
        load_tokens(data(train={"dataset": str(tmp_path / "saved")}), tokenizer, VOCABULARY)


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("split", ["train", "train[:50%]"])
def test_the_file_at_fault_in_a_folder_is_named(split: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/a.jsonl").write_text(LINES)
    (tmp_path / "rows/b.jsonl").write_text(LINES[:-9])
    with pytest.raises(TextError, match=r"data.train: .*/rows/b.jsonl, line 100 is not JSON.*cut"):
        load_tokens(data(train={"dataset": str(tmp_path / "rows"), "split": split}), tokenizer, VOCABULARY)


def test_a_single_file_has_no_other_split(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "x.jsonl").write_text(LINES)
    with pytest.raises(TextError, match=r"x.jsonl is one file: its only split is train"):
        load_tokens(data(train={"dataset": str(tmp_path / "x.jsonl"), "split": "test"}), tokenizer, VOCABULARY)


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="the collected cases are not here")
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("dataset_latin1", r"latin1.jsonl, line 1: byte 0xe9 is not UTF-8"),
        ("dataset_truncated", r"truncated.jsonl, line 400 is not JSON: .*it is cut"),
        ("jsonl_as_text", None),
        ("dataset_save_to_disk", None),
    ],
)
def test_the_collected_cases(case: str, message: str | None) -> None:
    request = load(SHARED / "cases" / case / "job.yaml")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(request.checkpoint)
    if message is not None:
        with pytest.raises(TextError, match=rf"^data.train: .*{message}"):
            load_tokens(request.data, tokenizer, 512)
        return
    text = tokenizer.decode(load_tokens(request.data, tokenizer, 512).distillation.ravel().tolist())
    assert "Once upon a time" in text
    assert '"text"' not in text
