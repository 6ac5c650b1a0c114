"""Peak memory and time of turning text into the four sets of tokens, and of reading them again.

    python benchmarks/token_memory.py TOKENIZER --words FILE [--tokens 200000000] [--home FOLDER]

TOKENIZER is the folder of a checkpoint. The text is documents of 200 words each, drawn at random from FILE's. There is
one process, and its peak is all that it holds, libraries and mapped pages among it. Without --home the text and the
tokens lie in a folder that is removed.
"""

import argparse
import random
import resource
import tempfile
import time
from pathlib import Path

from transformers import AutoTokenizer

from nas.job.data import Data
from nas.text.kept_tokens import TokenFolder, load_tokens
from nas.text.tokenizer import tokenizer_digest

_WORDS = 200
_GIB = 1 << 30


def write(file: Path, words: list[str], count: int) -> None:
    """Documents of `count` words in all."""
    draw = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(0, count, _WORDS):
            out.write(" ".join(draw.choices(words, k=_WORDS)) + "\n\n<|endoftext|>")


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB


def measure(asked: argparse.Namespace, home: Path) -> None:
    file = home / f"{asked.tokens}.txt"
    if not file.exists():
        # A word is a token or more.
        write(file, asked.words.read_text(encoding="utf-8").split(), int(1.1 * asked.tokens))
    tokenizer = AutoTokenizer.from_pretrained(asked.tokenizer)
    kept = TokenFolder(home / "tokens", tokenizer_digest(asked.tokenizer))
    data = Data(train=[str(file)], distillation_tokens=asked.tokens)
    print(f"{asked.tokens:,} tokens, {file.stat().st_size / _GIB:.2f} GiB of text; before: {peak_gib():.2f} GiB")
    for _ in range(2):
        started = time.perf_counter()
        tokens = load_tokens(data, tokenizer, len(tokenizer), kept)
        seconds, bytes_held = time.perf_counter() - started, tokens.distillation.itemsize
        print(f"{seconds:.1f} s, peak {peak_gib():.2f} GiB, {bytes_held} bytes a token on disk", end="; ")
        print(f"set {tokens.digest('distillation')}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--words", type=Path, required=True, help="a text file")
    parser.add_argument("--tokens", type=int, default=200_000_000)
    parser.add_argument("--home", type=Path)
    asked = parser.parse_args()
    import nas.terminal.quiet  # noqa: F401  (on all cores, as a search)

    with tempfile.TemporaryDirectory() as folder:
        measure(asked, asked.home or Path(folder))


if __name__ == "__main__":
    main()
