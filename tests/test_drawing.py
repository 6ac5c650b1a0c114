"""Text that trains, scores and evaluates is drawn alike and disjoint, and the summary tells its sources."""

import json
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_data import BOS, VOCABULARY, byte_level, data, documents_seen, stories, write
from transformers import PreTrainedTokenizerFast

from nas.errors import TextError
from nas.job.data import Data, HubDataset
from nas.text.kept_tokens import load_tokens
from nas.text.sources import Documents, read_documents, read_text
from nas.text.tokens import SPLITS, Dropped, Tokens


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level(bos=True)


def test_sets_are_drawn_from_all_sources_in_their_shares(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Two plain files without separators, one of them three times the other, as people have them."""
    files = [
        write(tmp_path / "large.txt", [" ".join(stories(150))]),
        write(tmp_path / "small.txt", [" ".join(stories(50, seed=1))]),
    ]
    tokens = load_tokens(data(train=files, score_tokens=4096, evaluation_tokens=4096), tokenizer, VOCABULARY)
    for split in ("distillation", "score", "evaluation"):
        share = tokens.sources["small.txt"][split] / getattr(tokens, split).size
        assert 0.1 < share < 0.4, split
        words = documents_seen(tokens, tokenizer)[split]
        assert {word[:2] for word in words} >= {"s0", "s1"}, split
    assert_apart(tokens, tokenizer)


def assert_apart(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> None:
    """No two sets share a word of their texts; every word of stories is there once, or so nearly."""
    texts = {split: tokenizer.decode(getattr(tokens, split).ravel().tolist()) for split in SPLITS}
    words = {split: set(text.replace(BOS, " ").split()[1:-1]) for split, text in texts.items()}
    for one, other in (("distillation", "score"), ("distillation", "evaluation"), ("score", "evaluation")):
        assert len(words[one] & words[other]) <= 0.02 * len(words[other]), (one, other)


def test_one_document_is_enough(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A book is cut, and its pieces are set aside whole."""
    tokens = load_tokens(data(train=[write(tmp_path / "book.txt", [" ".join(stories(100))])]), tokenizer, VOCABULARY)
    assert_apart(tokens, tokenizer)


@pytest.mark.parametrize("written", ["bom", "windows", "decomposed", "spaces", "utf16"])
def test_a_copy_of_an_evaluation_document_is_found_however_it_is_written(
    written: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    held_out = [f"Caf\u00e9 of {text}\nand {text}" for text in stories(20, seed=1)]
    copies = {
        "bom": [f"\ufeff{text}" for text in held_out],
        "windows": [text.replace("\n", "\r\n") for text in held_out],
        "decomposed": [unicodedata.normalize("NFD", text) for text in held_out],
        "spaces": [text.replace(" ", "\u00a0", 3) + " \n\n" for text in held_out],
        "utf16": held_out,
    }[written]
    train = tmp_path / "train.txt"
    encoding = "utf-16" if written == "utf16" else "utf-8"
    train.write_bytes("<|endoftext|>".join(copies + stories(60)).encode(encoding))
    evaluation = [write(tmp_path / "evaluation.txt", held_out)]
    tokens = load_tokens(data(train=[train], evaluation=evaluation), tokenizer, VOCABULARY)
    assert tokens.dropped == Dropped(evaluated=20)
    seen = documents_seen(tokens, tokenizer)
    assert not {name for name in seen["distillation"] | seen["score"] if name.startswith("s1")}


def test_a_bom_on_the_evaluation_file_hides_nothing(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    held_out = stories(20, seed=1)
    (tmp_path / "evaluation.txt").write_bytes(b"\xef\xbb\xbf" + "<|endoftext|>".join(held_out).encode())
    train = [write(tmp_path / "train.txt", stories(60) + held_out)]
    asked = data(train=train, evaluation=[tmp_path / "evaluation.txt"])
    assert load_tokens(asked, tokenizer, VOCABULARY).dropped == Dropped(evaluated=20)


def test_evaluated_paragraphs_within_other_documents_are_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    held_out, own = stories(20, seed=1), stories(60)
    mixed = [f"{text}\n\n{held_out[index]}" if index < 20 else text for index, text in enumerate(own)]
    asked = data(
        train=[write(tmp_path / "train.txt", mixed)], evaluation=[write(tmp_path / "evaluation.txt", held_out)]
    )
    tokens = load_tokens(asked, tokenizer, VOCABULARY)
    assert tokens.dropped == Dropped(paragraphs=20)
    seen = documents_seen(tokens, tokenizer)
    assert not {name for name in seen["distillation"] | seen["score"] if name.startswith("s1")}


def test_a_paragraph_that_all_documents_share_is_in_one_set(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A licence at the head of every file costs the files nothing but the licence."""
    licence = " ".join(f"licence{index}" for index in range(20))
    files = [write(tmp_path / f"{index}.txt", [f"{licence}\n\n{text}"]) for index, text in enumerate(stories(100))]
    tokens = load_tokens(data(train=files), tokenizer, VOCABULARY)
    texts = {split: tokenizer.decode(getattr(tokens, split).ravel().tolist()) for split in SPLITS}
    assert {split for split, text in texts.items() if "licence7" in text} == {"evaluation"}
    assert tokens.dropped.paragraphs > 3
    assert_apart(tokens, tokenizer)


def texts_of(key: str, paths: tuple[Path, ...], characters: int) -> tuple[Documents, list[list[str]]]:
    """The documents of plain files, by source."""
    documents = read_documents(key, paths, None, "train", characters, lambda chat: "")
    texts: list[list[str]] = [[] for _ in paths]
    for document in documents:
        texts[document.source].append(document.text)
    return documents, texts


def test_much_more_text_than_is_wanted_is_read_in_part(tmp_path: Path) -> None:
    """The same share of every source, so that the last has its own."""
    paths = [tmp_path / f"{name}.jsonl" for name in ("large", "middle", "small")]
    for path, count in zip(paths, (9000, 6000, 3000), strict=True):
        path.write_text("\n".join(json.dumps({"text": text}) for text in stories(count, seed=count)))
    some, some_texts = texts_of("data.train", tuple(paths), 600_000)
    assert some.share == pytest.approx(600_000 / sum(path.stat().st_size for path in paths))
    counts = [len(texts) / some.share for texts in some_texts]
    assert counts == pytest.approx([9000, 6000, 3000], rel=0.5)
    everything, whole_texts = texts_of("data.train", tuple(paths), 10**9)
    assert [len(texts) for texts in whole_texts] == [9000, 6000, 3000]
    assert everything.share == 1
    assert all(texts == whole[: len(texts)] for texts, whole in zip(some_texts, whole_texts, strict=True))


def test_of_a_large_folder_of_parquet_the_heads_alone_are_read(tmp_path: Path) -> None:
    """The rows behind them are damaged here, and nobody notices until they are asked for."""
    for number in range(3):
        file = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"text": stories(5000, seed=number)}), file, row_group_size=1000)
        chunks = [pq.read_metadata(file).row_group(group).column(0) for group in range(1, 5)]
        with file.open("r+b") as out:
            for chunk in chunks:
                out.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
                out.write(bytes(chunk.total_compressed_size))
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    folder = HubDataset(dataset=str(tmp_path))
    some = read_documents("data.train", folder, None, "train", size // 50, lambda chat: "")
    texts = [document.text for document in some]
    assert len(texts) == pytest.approx(15_000 / 50, abs=3)
    assert {text[:2] for text in texts} == {"s0", "s1", "s2"}
    with pytest.raises(TextError, match=r"/0\.parquet is damaged or cut: [^\n]*; fetch it again$"):
        list(read_documents("data.train", folder, None, "train", size, lambda chat: ""))


def test_of_many_small_files_some_are_read(tmp_path: Path) -> None:
    paths = tuple(write(tmp_path / f"{index:03}.txt", [text]) for index, text in enumerate(stories(200)))
    asked = Data(train=paths, document_separator=None)
    _, some_texts = texts_of("data.train", paths, 10_000)
    assert sum(map(len, some_texts)) == pytest.approx(10_000 / 290, rel=0.2)
    assert any(some_texts[150:])
    assert read_text(asked, 10_000, lambda chat: "").empty == ()


def test_a_blank_head_is_read_past(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    blank = "\n".join(json.dumps({"text": " " * 1000}) for _ in range(17_000))
    text = "\n".join(json.dumps({"text": text}) for text in stories(100))
    (tmp_path / "late.jsonl").write_text(f"{blank}\n{text}")
    tokens = load_tokens(data(train=[tmp_path / "late.jsonl"]), tokenizer, VOCABULARY)
    assert (tokens.distillation.size, tokens.share_read) == (1024, 1)


# --- what is said ---------------------------------------------------------------------------------------------------


def test_the_summary_says_of_each_source_where_its_tokens_went(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = data(
        train=[write(tmp_path / "a[x].txt", stories(60)), write(tmp_path / "empty.txt", [""])],
        evaluation=[write(tmp_path / "b.txt", stories(20, seed=1))],
    )
    assert load_tokens(asked, tokenizer, VOCABULARY).describe().splitlines() == [
        "tokens from   distillation          score     evaluation",
        "a[x].txt             1,024            256              -",
        "b.txt                    -              -            256",
        "empty.txt                -              -              -",
        "all 3                1,024            256            256",
        "in sequences of 32 tokens; dropped as copies: none",
        "no text in empty.txt",
    ]


def test_the_summary_of_fifty_sources_names_the_largest(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    files = [write(tmp_path / f"{index}.txt", [" ".join(stories(20, seed=index))]) for index in range(49)]
    files.append(write(tmp_path / f"{'long' * 20}.txt", [" ".join(stories(900, seed=50))]))
    asked = data(train=files, distillation_tokens=32_768)
    tokens = load_tokens(asked, tokenizer, VOCABULARY)
    header, *lines = tokens.describe().splitlines()
    assert len(lines) == 8 + 3
    assert lines[0].startswith("...")
    assert lines[0].split()[0].endswith("longlong.txt")
    assert lines[8].startswith("42 more ")
    assert lines[9].split() == ["all", "50", "32,768", "256", "256"]
    assert {len(line) for line in (header, *lines[:10])} == {len(header)}
    columns = [[int(cell.replace(",", "").replace("-", "0")) for cell in line.split()[-3:]] for line in lines[:10]]
    assert [sum(column) for column in zip(*columns[:9], strict=True)] == columns[9]


def test_files_of_one_name_are_told_apart(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for folder in "abc":
        (tmp_path / folder).mkdir()
    files = [write(tmp_path / folder / "text.txt", stories(60, seed)) for seed, folder in enumerate("abc")]
    tokens = load_tokens(data(train=files[:2], evaluation=files[2:]), tokenizer, VOCABULARY)
    assert list(tokens.sources) == ["a/text.txt", "b/text.txt", "text.txt"]
    tokens = load_tokens(data(train=files[:1], evaluation=files[2:]), tokenizer, VOCABULARY)
    assert list(tokens.sources) == ["text.txt", "text.txt (data.evaluation)"]
