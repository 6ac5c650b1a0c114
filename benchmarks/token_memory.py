"""Peak memory and time of turning text into the four sets of tokens, as a search does it, and of reading them again.

    python benchmarks/token_memory.py TOKENIZER --words FILE [--tokens 200000000] [--source-tokens N]
                                      [--format text] [--home FOLDER]

TOKENIZER is the folder of a checkpoint. The text is documents of 200 words each, drawn at random from FILE's, in one
text file, or in a folder of Parquet files. With more --source-tokens than --tokens the text holds so many more, as a
data set does of which a job asks for little. Memory is the proportional set size of all processes. Without --home the
text and the tokens lie in a folder that is removed.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pss import peak_of_family
from transformers import AutoTokenizer

from nas.job.data import Data
from nas.text.kept_tokens import TokenFolder, load_tokens
from nas.text.tokenizer import tokenizer_digest

_WORDS = 200
_FILE_ROWS, _GROUP_ROWS = 100_000, 20_000
_GIB = 1 << 30


def documents(words: list[str], count: int) -> Iterator[str]:
    """Documents of `count` words in all."""
    draw = random.Random(0)
    for _ in range(0, count, _WORDS):
        yield " ".join(draw.choices(words, k=_WORDS))


def write_text(folder: Path, words: list[str], count: int) -> Any:
    """One file of them; as a job names it."""
    file = folder / "all.txt"
    with file.open("w", encoding="utf-8") as out:
        out.writelines(f"{document}\n\n<|endoftext|>" for document in documents(words, count))
    return [str(file)]


def write_parquet(folder: Path, words: list[str], count: int) -> Any:
    """A folder of files of some 110 MB; as a job names it."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    schema = arrow.schema([("text", arrow.string())])
    found = documents(words, count)
    for start in range(0, -(-count // _WORDS), _FILE_ROWS):
        with parquet.ParquetWriter(folder / f"{start:012}.parquet", schema) as out:
            for _ in range(0, _FILE_ROWS, _GROUP_ROWS):
                texts = [text for _, text in zip(range(_GROUP_ROWS), found, strict=False)]
                out.write_table(arrow.table({"text": texts}, schema))
    return {"dataset": str(folder)}


def measure(asked: argparse.Namespace, home: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(asked.tokenizer)
    source = max(asked.tokens, asked.source_tokens)
    folder = home / f"{asked.format}-{source}"
    folder.mkdir()
    write = {"text": write_text, "parquet": write_parquet}[asked.format]
    # A word is a token or more.
    train = write(folder, asked.words.read_text(encoding="utf-8").split(), int(1.1 * source))
    size = sum(file.stat().st_size for file in folder.iterdir())
    kept = TokenFolder(home / "tokens", tokenizer_digest(asked.tokenizer))
    data = Data(train=train, distillation_tokens=asked.tokens)
    print(f"{asked.tokens:,} tokens of {size / _GIB:.2f} GiB of {asked.format}")
    for what in ("prepared", "read again"):
        with peak_of_family() as peak:
            started, busy = time.perf_counter(), sum(os.times()[:4])
            tokens = load_tokens(data, tokenizer, len(tokenizer), kept)
            seconds, busy = time.perf_counter() - started, sum(os.times()[:4]) - busy
        file = tokens.files["distillation"].path
        each = file.stat().st_size / tokens.distillation.size
        print(f"{what}: {seconds:.1f} s ({busy:.1f} s of CPU), peak {peak.bytes / _GIB:.2f} GiB", end="; ")
        print(f"{each:.2f} bytes a token on disk, {tokens.share_read:.1%} read", end="; ")
        print(f"set {tokens.digest('distillation')}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--words", type=Path, required=True, help="a text file")
    parser.add_argument("--tokens", type=int, default=200_000_000)
    parser.add_argument("--source-tokens", type=int, default=0)
    parser.add_argument("--format", choices=("text", "parquet"), default="text")
    parser.add_argument("--home", type=Path, help="an empty folder")
    asked = parser.parse_args()
    import nas.terminal.quiet  # noqa: F401  (on all cores, as a search)

    with tempfile.TemporaryDirectory() as folder:
        measure(asked, asked.home or Path(folder))


if __name__ == "__main__":
    main()
