"""What a stored precision costs a model in quality, by the way in which its matrices are rounded.

    python benchmarks/rounding.py PARENT --calibration train.txt --heldout test.txt [--precisions q4_0 q8_0]
        [--how plain diagonal feedback refit] [--calibration-tokens 8192] [--tokens 2048] [--length 512]

Rounds the matrices of all layers, layer after layer: the moments of each matrix's inputs are taken in the model that is
rounded so far. Embedding and head stay as they are. Prints a Markdown table: KL to the parent and loss on the head of
the held-out text in nats, how far all outputs move on the calibration text (the sum of errors over that of plain, as a
geometric mean over matrices), and CPU seconds of rounding alone, of which the moments are no part.
"""

import argparse
import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nas.terminal.quiet  # isort: skip
import torch
from torch import Tensor, nn

from blocklib.formats.gguf_types import tensor_type
from blocklib.model import PuzzleNasForCausalLM, PuzzleNasLayer
from blocklib.parent import load_parent
from blocklib.precisions.moments import InputMoments, MomentMeter
from blocklib.precisions.rounding import How, round_matrix, unpacked
from blocklib.stream import Rotary, delta, embed, rotary
from nas.stages.evaluate import evaluate
from nas.text.tokenizer import load_tokenizer

assert nas.terminal.quiet

HOWS: tuple[How, ...] = ("plain", "diagonal", "feedback", "refit")
SEQUENCES = 4
"""At once."""


@dataclass(frozen=True)
class Moved:
    """One matrix: the error of its outputs, rounded one way and plainly, and the seconds of rounding."""

    error: float
    plain_error: float
    seconds: float


class Reached(Exception):
    """A layer came to the matrix whose inputs were asked for; the rest of it need not run."""


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parsed(arguments)
    parent = load_parent(str(asked.parent)).model
    tokenizer = load_tokenizer(asked.parent)
    calibration_BT, heldout_BT = (
        sequences(tokenizer, files, tokens, asked.length)
        for files, tokens in ((asked.calibration, asked.calibration_tokens), (asked.heldout, asked.tokens))
    )
    own = evaluate(parent, parent, heldout_BT)
    print(f"Parent: loss {own.lm_loss:.4f} on {heldout_BT.numel()} tokens; {calibration_BT.numel()} calibrate.\n")
    print("| precision | how | KL | loss | outputs' error | CPU seconds |\n|---|---|---|---|---|---|")
    for precision in asked.precisions:
        for how in asked.how:
            model = copy.deepcopy(parent)
            moved = list(round_layers(model, precision, how, calibration_BT))
            ratios = [math.log(max(one.error, 1e-30) / max(one.plain_error, 1e-30)) for one in moved]
            result = evaluate(parent, model, heldout_BT)
            print(
                f"| {precision} | {how} | {result.kl:.4f} | {result.lm_loss:.4f} "
                f"| {math.exp(sum(ratios) / len(ratios)):.3f} | {sum(one.seconds for one in moved):.1f} |",
                flush=True,
            )


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parent", type=Path)
    parser.add_argument("--calibration", type=Path, nargs="+", required=True, help="text files")
    parser.add_argument("--heldout", type=Path, nargs="+", required=True, help="text files")
    parser.add_argument("--precisions", nargs="+", default=["q4_0"])
    parser.add_argument("--how", nargs="+", choices=HOWS, default=HOWS)
    parser.add_argument("--calibration-tokens", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=2048, help="held-out tokens")
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


def round_layers(model: PuzzleNasForCausalLM, precision: str, how: How, ids_BT: Tensor) -> Iterator[Moved]:
    """Rounds the model's layers in place."""
    hidden_BTD = embed(model, ids_BT)
    tables = rotary(model, hidden_BTD)
    for layer in model.model.layers:
        for matrices in sharing_inputs(layer, hidden_BTD[:1], tables):
            moments = moments_of(matrices[0], layer, hidden_BTD, tables)
            for matrix in matrices:
                yield rounded(matrix, precision, how, moments)
        hidden_BTD = torch.cat([part + delta(layer, part, tables) for part in hidden_BTD.split(SEQUENCES)])


def sharing_inputs(layer: PuzzleNasLayer, hidden_BTD: Tensor, tables: Rotary) -> list[list[nn.Linear]]:
    """The layer's matrices in the order in which they run, those of one input together."""
    groups: list[tuple[Tensor, list[nn.Linear]]] = []

    def note(matrix: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(matrix, nn.Linear)
        if groups and groups[-1][0] is given[0]:
            groups[-1][1].append(matrix)
        else:
            groups.append((given[0], [matrix]))

    handles = [one.register_forward_pre_hook(note) for one in layer.modules() if isinstance(one, nn.Linear)]
    delta(layer, hidden_BTD, tables)
    for handle in handles:
        handle.remove()
    return [matrices for _, matrices in groups]


def moments_of(matrix: nn.Linear, layer: PuzzleNasLayer, hidden_BTD: Tensor, tables: Rotary) -> InputMoments:
    meter = MomentMeter()

    def take(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        meter.add(given[0])
        raise Reached

    handle = matrix.register_forward_pre_hook(take)
    for part in hidden_BTD.split(SEQUENCES):
        try:
            delta(layer, part, tables)
        except Reached:
            continue
    handle.remove()
    return InputMoments(meter.moments_II())


def rounded(matrix: nn.Linear, precision: str, how: How, moments: InputMoments) -> Moved:
    """Rounds one matrix in place."""
    weight_OI = matrix.weight.detach().clone()
    type = tensor_type(tuple(weight_OI.shape), precision)
    start = time.process_time()
    values_OI = unpacked(round_matrix(weight_OI, type, moments, how), type)
    seconds = time.process_time() - start
    plain_OI = values_OI if how == "plain" else unpacked(round_matrix(weight_OI, type, how="plain"), type)
    matrix.weight.copy_(values_OI)
    errors = [
        float(((error_OI @ moments.scaled_II) * error_OI).sum())
        for error_OI in (weight_OI - values_OI, weight_OI - plain_OI)
    ]
    return Moved(*errors, seconds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main()
