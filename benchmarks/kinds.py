"""How good each kind of FFN is at a given number of active parameters: the whole model with it in every layer.

    python benchmarks/kinds.py JOB dip50 moe16k8 fff1 pkm22x2k32 --tokens 65536

Every option, and the dense FFN of its active width as its control, is built from the job's parent, fitted by least
squares where its kind can be, and distilled with the same tokens, batch and text; a kind's own settings are the job's.
Prints a Markdown table of held-out perplexities over the parent's: with first weights, after the fit, and distilled.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import nas.terminal.quiet  # isort: skip
import torch

from blocklib.activations import cached
from blocklib.assemble import assemble
from blocklib.block import Architecture, Block, Choice, Subblock
from blocklib.distil import Distilled, Progress, Texts, Training, distil
from blocklib.initial_weights import build
from blocklib.kind import Weights
from blocklib.kinds import choice_touched, control, kind_of, parent_block
from nas.job import config
from nas.stages.evaluate import evaluate, perplexity
from nas.stages.prepare import Job, prepare

assert nas.terminal.quiet


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("options", nargs="+", help="FFNs, as in a job's space.ffn")
    parser.add_argument("--tokens", type=int, default=65536, help="distillation tokens of each option")
    asked = parser.parse_args(arguments)
    job = prepare(config.load(asked.job))
    shape = job.parent.shape
    options = [kind_of("ffn", one).sized(one, shape) for one in map(Subblock.parse, asked.options)]
    controls = [control(option, shape) for option in options]
    together = list(dict.fromkeys([*options, *(one for one in controls if one is not None)]))
    own = evaluate(job.parent.model, job.parent.model, torch.from_numpy(job.tokens.evaluation.copy())).lm_loss
    losses = {option: perplexities(job, option, asked.tokens, own) for option in together}
    print("\n" + table(job, options, losses))


def perplexities(job: Job, option: Subblock, tokens: int, own_loss: float) -> tuple[float, float, float]:
    """Held-out perplexity, over the parent's, of the model with `option` in every layer: first weights, fitted,
    distilled. `own_loss` is the parent's."""
    parent, settings = job.parent, job.request.distill
    choices = [Choice(layer, "ffn", option) for layer in range(parent.shape.layers)]
    if all(parent.own(choice) for choice in choices):
        return 1.0, 1.0, 1.0
    calibration, distillation, heldout = (
        cached(parent.model, torch.from_numpy(ids.copy()), settings.batch)
        for ids in (job.tokens.calibration, job.tokens.distillation, job.tokens.score[:16])
    )
    built = list(build(parent, choices, calibration, settings.batch, fit=True))
    first = {unit.choice: unit.first for unit in built}
    fitted = {unit.choice: unit.fitted for unit in built}
    training: Training = replace(job.training(choices[0]), tokens=tokens)
    trained: dict[Choice, Weights] = {}
    for event in distil(
        parent, dict.fromkeys(choices, training), Texts(calibration, distillation, heldout, settings.batch)
    ):
        if isinstance(event, Distilled):
            trained[event.choice] = event.weights
        elif isinstance(event, Progress):
            print(f"\r{option}: {event.done_tokens} of {event.total_tokens} tokens", end="", file=sys.stderr)
    print(file=sys.stderr)
    found = tuple(perplexity(loss(job, option, weights) - own_loss) for weights in (first, fitted, trained))
    assert len(found) == 3
    return found


def loss(job: Job, option: Subblock, weights: Mapping[Choice, Weights]) -> float:
    """Held-out."""
    parent, heldout = job.parent, torch.from_numpy(job.tokens.evaluation.copy())
    own = parent_block(parent.shape)
    architecture = Architecture((Block(own.attention, option),) * parent.shape.layers)
    child = assemble(parent, architecture, weights.__getitem__)
    return evaluate(parent.model, child, heldout).lm_loss


def table(job: Job, options: Sequence[Subblock], found: Mapping[Subblock, tuple[float, float, float]]) -> str:
    """Perplexities over the parent's."""
    shape = job.parent.shape
    own = choice_touched(Choice(0, "ffn", parent_block(shape).ffn), shape, 1)
    lines = [
        "| FFN in every layer | active | first weights | fitted | distilled | control | distilled | beats it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for option in options:
        beside = control(option, shape)
        share = choice_touched(Choice(0, "ffn", option), shape, 1) / own
        cells = [str(option), f"{share:.1%}", *(f"{value:.3f}" for value in found[option])]
        if beside is None:
            cells += ["", "", ""]
        else:
            better = found[option][2] < found[beside][2]
            cells += [str(beside), f"{found[beside][2]:.3f}", "yes" if better else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
