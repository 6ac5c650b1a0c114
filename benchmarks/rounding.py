"""What a stored precision costs a model in quality, by the way in which its matrices are rounded.

    python benchmarks/rounding.py PARENT --calibration train.txt --heldout test.txt [--precisions q4_0 q8_0]
        [--how plain diagonal feedback refit trained] [--rates 1e-3] [--batch 1]
        [--calibration-tokens 8192] [--training-tokens 16384] [--tokens 4096] [--length 512]

Rounds the matrices of all layers as a search rounds its child: layer after layer, on what the rounded layers before it
make of the calibration text. Embedding and head stay as they are. *trained* is *refit*, and then each layer trained
through its rounding, at each rate, on the text that follows the calibration text. Prints a Markdown table: KL to the
parent and loss on the head of the held-out text in nats, the KL as a share of plain rounding's, and CPU seconds.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import nas.terminal.quiet  # isort: skip
import torch
from torch import Tensor

from blocklib.block import Architecture, Block
from blocklib.parent import Parent, load_parent
from blocklib.precisions.round_model import RoundingText, round_model
from blocklib.precisions.train_layer import LayerTraining
from nas.stages.evaluate import evaluate
from nas.text.tokenizer import load_tokenizer

assert nas.terminal.quiet

TRAINED = "trained"
HOWS = ("plain", "diagonal", "feedback", "refit", TRAINED)
BATCH = 4


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parsed(arguments)
    parent = load_parent(str(asked.parent))
    tokenizer = load_tokenizer(asked.parent)
    text_BT = sequences(tokenizer, asked.calibration, asked.calibration_tokens + asked.training_tokens, asked.length)
    heldout_BT = sequences(tokenizer, asked.heldout, asked.tokens, asked.length)
    calibration_BT, training_BT = text_BT.tensor_split([asked.calibration_tokens // asked.length])
    own = evaluate(parent.model, parent.model, heldout_BT)
    print(
        f"Parent: loss {own.lm_loss:.4f} on {heldout_BT.numel()} tokens; {calibration_BT.numel()} calibrate, "
        f"{training_BT.numel()} train.\n"
    )
    print("| precision | how | KL | of plain | loss | CPU seconds |\n|---|---|---|---|---|---|")
    texts = {how: [(how, RoundingText(calibration_BT, BATCH))] for how in HOWS}
    texts[TRAINED] = [
        (f"{TRAINED}, {rate:g}", RoundingText(calibration_BT, BATCH, LayerTraining(training_BT, asked.batch, rate)))
        for rate in asked.rates
    ]
    for precision in asked.precisions:
        plain = 0.0
        for how in asked.how:
            for name, text in texts[how]:
                started = time.process_time()
                model, _ = round_model(
                    parent.whole(), throughout(parent, precision), text, "refit" if how == TRAINED else how
                )
                seconds = time.process_time() - started
                result = evaluate(parent.model, model, heldout_BT)
                plain = result.kl if how == "plain" else plain
                of_plain = f"{result.kl / plain:.0%}" if plain else "-"
                print(
                    f"| {precision} | {name} | {result.kl:.4f} | {of_plain} | {result.lm_loss:.4f} | {seconds:.0f} |",
                    flush=True,
                )


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parent", type=Path)
    parser.add_argument("--calibration", type=Path, nargs="+", required=True, help="text files")
    parser.add_argument("--heldout", type=Path, nargs="+", required=True, help="text files")
    parser.add_argument("--precisions", nargs="+", default=["q4_0"])
    parser.add_argument("--how", nargs="+", choices=HOWS, default=HOWS)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3], help="learning rates of trained")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a step of trained")
    parser.add_argument("--calibration-tokens", type=int, default=8192)
    parser.add_argument("--training-tokens", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=4096, help="held-out tokens")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    return parser.parse_args(arguments)


def sequences(tokenizer: object, files: Sequence[Path], tokens: int, length: int) -> Tensor:
    """The head of the texts, an equal part of each, [sequences, length]."""
    ids: list[int] = []
    for file in files:
        text = file.read_text(encoding="utf-8")[: 8 * tokens]
        share = tokens // len(files) // length * length
        read = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[operator]
        assert len(read) >= share, f"{file} has {len(read)} tokens, not {share}"
        ids += read[:share]
    return torch.tensor(ids).view(-1, length)


def throughout(parent: Parent, precision: str) -> Architecture:
    """The parent's own blocks in one precision."""
    blocks = (block for block in parent.architecture.blocks if isinstance(block, Block))
    stored = (Block(block.attention.at(precision), block.ffn.at(precision)) for block in blocks)
    return Architecture(tuple(stored))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
