"""Peak memory and time of turning text into the four sets of tokens.

    python benchmarks/token_memory.py TOKENIZER --words FILE [--tokens 4000000]

TOKENIZER is the folder of a checkpoint. The text is documents of 200 words each, drawn at random from FILE's. Bytes are
those of the process past what it held before, for each token of the training set.
"""

import argparse
import random
import resource
import tempfile
import time
from pathlib import Path

from transformers import AutoTokenizer

from nas.job.sections import Data
from nas.text.tokens import load_tokens

_WORDS = 200


def write(file: Path, words: list[str], count: int) -> None:
    """Documents of `count` words in all."""
    draw = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(0, count, _WORDS):
            out.write(" ".join(draw.choices(words, k=_WORDS)) + "\n\n<|endoftext|>")


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--words", type=Path, required=True, help="a text file")
    parser.add_argument("--tokens", type=int, default=4_000_000)
    asked = parser.parse_args()
    import nas.terminal.quiet  # noqa: F401  (on all cores, as a search)

    tokenizer = AutoTokenizer.from_pretrained(asked.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "text.txt")
        # A word is a token or more.
        write(file, asked.words.read_text(encoding="utf-8").split(), int(1.1 * asked.tokens))
        data = Data(train=[str(file)], distillation_tokens=asked.tokens)
        before, started = peak_bytes(), time.perf_counter()
        tokens = load_tokens(data, tokenizer, len(tokenizer))
        seconds, grown = time.perf_counter() - started, peak_bytes() - before
        characters = file.stat().st_size / asked.tokens
    print(f"{asked.tokens:,} tokens, {characters:.1f} characters written for each: {seconds:.1f} s")
    print(f"{grown / asked.tokens:.0f} bytes a token at the peak; set {tokens.digest('distillation')}")


if __name__ == "__main__":
    main()
