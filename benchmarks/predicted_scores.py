"""Scores of precisions predicted from one measured at each slot, beside scores that are all measured.

    python benchmarks/predicted_scores.py PARENT --text FILE [--precisions q8_0 q5_1 q5_0 q4_1 q4_0] [--tokens 2048]
        [--attention kv1 ...] [--ffn ffn384 ...]

Rounds every attention and FFN of the parent to every precision, and each of these shapes with its first weights fitted
by least squares; scores all of them in the sweep; and predicts all but the parent's own in the coarsest, from these and
the scores of the shapes. Prints how far predictions are off, the CPU seconds of both ways, those of a full pass of the
parent for each option, and, at eight sizes of the layers' matrices, the measured score of the answer to either.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import AutoTokenizer

from blocklib.activations import ComputedActivations, cached
from blocklib.assemble import parent_part
from blocklib.block import Choice
from blocklib.formats.gguf import gguf_bytes
from blocklib.initial_weights import build
from blocklib.kind import Weights
from blocklib.parent import Parent, load_parent
from blocklib.precisions.parts import as_floats
from blocklib.precisions.round_library import round_parts
from nas.scoring.fidelity import Fidelity
from nas.scoring.replace_one import score
from nas.scoring.rounding_error import OWN, predicted, rounding_errors
from nas.stages.predict_scores import to_compare
from solvers.exact import solver
from solvers.exact.settings import DEFAULT
from solvers.problem import Option, Problem

SEQUENCE, BATCH, BUDGETS = 512, 4, 8
FLOOR = 1e-5
"""Nats: smaller ones decide nothing beside the others."""
Made = TypeVar("Made")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parent", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--precisions", nargs="+", default=["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
    parser.add_argument("--attention", nargs="*", default=[], help="shapes beside the parent's own")
    parser.add_argument("--ffn", nargs="*", default=[])
    parser.add_argument("--tokens", type=int, default=2048, help="to score on; eight times as many to round on")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    parent = load_parent(str(asked.parent))
    length = min(SEQUENCE, int(parent.model.config.max_position_embeddings))
    ids = AutoTokenizer.from_pretrained(asked.parent)(asked.text.read_text(encoding="utf-8"))["input_ids"]
    rounding, scoring = (
        torch.tensor(part).view(-1, length)
        for part in (ids[: 8 * asked.tokens], ids[8 * asked.tokens : 9 * asked.tokens])
    )
    shapes = [
        Choice.parse(f"L{layer}.{role}={name}")
        for layer in range(parent.shape.layers)
        for role, names in (("attention", asked.attention), ("ffn", asked.ffn))
        for name in names
    ]
    before = {each: parent_part(parent, each.layer, each.role) for each in parent.architecture.choices()}
    before |= {
        built.choice: built.fitted
        for built in build(parent, shapes, cached(parent.model, rounding, BATCH), BATCH, fit=True)
    }
    options = [Choice.parse(f"{shape}@{precision}") for shape in before for precision in asked.precisions]
    rounded = round_parts(parent, options, before.__getitem__, rounding, BATCH, "feedback")
    floats = {choice: as_floats(choice, stored, parent.shape) for choice, stored in rounded}
    measured, measured_s = timed(partial(scores_of, parent, floats, scoring))
    found, predicted_s = timed(partial(predictions, parent, before, floats, scoring))
    _, pass_s = timed(partial(passed, parent, scoring))
    for kind, are_own in (("the parent's own shapes", True), ("other shapes", False)):
        tell(kind, measured, {each: kl for each, kl in found.items() if parent.own(each.unrounded) == are_own})
    full_s = pass_s * len(options)
    print(
        f"CPU seconds for {len(options)} options: a full pass for each {full_s:.0f} (its KL left out), all in the "
        f"sweep {measured_s:.0f}, predicted {predicted_s:.0f}: {full_s / predicted_s:.1f} and "
        f"{measured_s / predicted_s:.1f} times less"
    )
    compare_answers(parent, measured, measured | found)


def timed(step: Callable[[], Made]) -> tuple[Made, float]:
    started = time.process_time()
    return step(), time.process_time() - started


def scores_of(parent: Parent, weights: dict[Choice, Weights], ids_BT: Tensor) -> dict[Choice, Fidelity]:
    *_, found = score(parent, weights, ComputedActivations(parent.model, ids_BT))
    assert isinstance(found, dict)
    return found


@torch.no_grad()
def passed(parent: Parent, ids_BT: Tensor) -> None:
    for ids in ids_BT.split(BATCH):
        parent.model(ids, use_cache=False)


def size(parent: Parent, choice: Choice) -> int:
    return gguf_bytes(choice, parent.shape, choice.precision)


def predictions(
    parent: Parent, before: dict[Choice, Weights], floats: dict[Choice, Weights], ids_BT: Tensor
) -> dict[Choice, Fidelity]:
    """Scores of all but the parent's own subblock in the coarsest precision at each slot, which is measured as the
    shapes are."""
    anchors: dict[int, Choice] = {}
    for choice in floats:
        if parent.own(choice.unrounded):
            held = anchors.setdefault(choice.first_slot, choice)
            anchors[choice.first_slot] = min(held, choice, key=partial(size, parent))
    shapes = {shape: weights for shape, weights in before.items() if not parent.own(shape)}
    measured = scores_of(parent, shapes | {anchor: floats[anchor] for anchor in anchors.values()}, ids_BT)
    few_BT = torch.from_numpy(to_compare(ids_BT.numpy()))
    errors = dict(rounding_errors(parent, floats, (before | floats).__getitem__, few_BT))
    return {
        choice: predicted(measured.get(choice.unrounded, OWN), measured[anchor], errors[choice] / errors[anchor])
        for choice in floats
        for anchor in [anchors[choice.first_slot]]
        if choice != anchor
    }


def tell(kind: str, measured: dict[Choice, Fidelity], found: dict[Choice, Fidelity]) -> None:
    off = [found[choice].kl / measured[choice].kl - 1 for choice in found if measured[choice].kl > FLOOR]
    if off:
        print(
            f"{kind}: {len(found)} predicted; {len(off)} of these have a KL above {FLOOR}, and are off by "
            f"{statistics.fmean(map(abs, off)):.1%} in the mean, at most {max(map(abs, off)):.0%}, bias "
            f"{statistics.fmean(off):+.1%}"
        )


def compare_answers(parent: Parent, measured: dict[Choice, Fidelity], found: dict[Choice, Fidelity]) -> None:
    """The measured score of the architecture that each set of scores leads to."""

    def problem(scores: dict[Choice, Fidelity], most: float) -> Problem:
        options = [
            Option(each.first_slot, 1, str(each.what), scores[each].kl, {"bytes": size(parent, each)})
            for each in scores
        ]
        return Problem(2 * parent.shape.layers, tuple(options), {"bytes": most})

    by_slot: dict[int, list[int]] = {}
    for choice in measured:
        by_slot.setdefault(choice.first_slot, []).append(size(parent, choice))
    least, most = (sum(choose(sizes) for sizes in by_slot.values()) for choose in (min, max))
    names = {(choice.first_slot, str(choice.what)): choice for choice in measured}
    print("MB of layers | measured score of the answer to measured, to predicted scores")
    for step in range(1, BUDGETS + 1):
        budget = least + (most - least) * step / (BUDGETS + 1)
        answers = [solver.solve(problem(scores, budget), DEFAULT).options for scores in (measured, found)]
        sums = [sum(measured[names[one.first, one.name]].kl for one in options) for options in answers]
        print(f"{budget / 1e6:.1f} | {sums[0]:.4f} | {sums[1]:.4f} ({sums[1] / sums[0] - 1:+.1%})")


if __name__ == "__main__":
    main()
