"""The quality of a parent whose FFNs read less: dynamic input pruning beside other ways to read as little, untrained.

    python benchmarks/pruning.py JOB [--keep 75 50 25] [--tokens 8192]

Every way is put into all layers of the job's parent, and nothing is trained. DIP (arXiv 2412.01380) is our `dip50`. The
oracle sees all hidden values and keeps those of largest |h| times the norm of what they write: no method can know them
before it has computed them. CATS (arXiv 2404.08763) computes the whole gate and is given as many bytes; it cannot read
as little as a third. "Fixed neurons" is our `ffnN`, the most important ones whatever the token. Prints a Markdown table
of held-out perplexities over the parent's.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nas.terminal.quiet  # isort: skip
import torch
from torch import Tensor, nn

from blocklib.activations import cached
from blocklib.assemble import assemble
from blocklib.block import Architecture, Block, Choice, Subblock
from blocklib.initial_weights import build
from blocklib.kinds import kind_of, parent_block
from blocklib.parent import Parent
from nas.job import config
from nas.stages.evaluate import evaluate, perplexity
from nas.stages.prepare import prepare

assert nas.terminal.quiet


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--keep", type=int, nargs="+", default=[75, 50, 25], help="per cent of the weights read")
    parser.add_argument("--tokens", type=int, default=8192, help="held-out tokens")
    asked = parser.parse_args(arguments)
    job = prepare(config.load(asked.job))
    calibration, heldout = (torch.from_numpy(ids.copy()) for ids in (job.tokens.calibration, job.tokens.evaluation))
    heldout = heldout[: max(1, asked.tokens // heldout.shape[1])]
    own = evaluate(job.parent.model, job.parent.model, heldout).lm_loss
    print("| kept | DIP | oracle | CATS | fixed neurons | random neurons |\n|---|---|---|---|---|---|")
    for percent in asked.keep:
        keep, width = percent / 100, job.parent.shape.ffn_width
        losses = [
            built_loss(job.parent, f"dip{percent}", calibration, heldout),
            oracle_loss(job.parent, keep, heldout),
            gate_loss(job.parent, keep, heldout),
            built_loss(job.parent, f"ffn{int(keep * width)}", calibration, heldout),
            random_loss(job.parent, keep, heldout),
        ]
        cells = ["-" if loss is None else f"{perplexity(loss - own):.3f}" for loss in losses]
        print(f"| {percent} % | {' | '.join(cells)} |", flush=True)


def built_loss(parent: Parent, spelling: str, calibration: Tensor, heldout: Tensor) -> float:
    """With first weights of this FFN in every layer."""
    ffn = kind_of("ffn", one := Subblock.parse(spelling)).sized(one, parent.shape)
    layers = range(parent.shape.layers)
    architecture = Architecture((Block(parent_block(parent.shape).attention, ffn),) * len(layers))
    choices = [Choice(layer, "ffn", ffn) for layer in layers]
    first = {
        unit.choice: unit.first for unit in build(parent, choices, cached(parent.model, calibration, 8), 8, fit=False)
    }
    return evaluate(parent.model, assemble(parent, architecture, first.__getitem__), heldout).lm_loss


@contextmanager
def hidden_masked(parent: Parent, keep: Callable[[nn.Module, Tensor], Tensor]) -> Iterator[None]:
    """Inside, every FFN of the parent uses only those of its hidden values that `keep` says, bool [..., F]."""
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, given, mlp=layer.mlp: given[0].masked_fill(~keep(mlp, given[0]), 0)
        )
        for layer in parent.model.model.layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def largest(sizes: Tensor, share: float) -> Tensor:
    kept = sizes.topk(int(share * sizes.shape[-1]), dim=-1).indices
    return torch.zeros_like(sizes, dtype=torch.bool).scatter_(-1, kept, True)


def oracle_loss(parent: Parent, keep: float, heldout: Tensor) -> float:
    norms = {layer.mlp: layer.mlp.down_proj.weight.norm(dim=0) for layer in parent.model.model.layers}
    with hidden_masked(parent, lambda mlp, hidden: largest(hidden.abs() * norms[mlp], keep)):
        return evaluate(parent.model, parent.model, heldout).lm_loss


def gate_loss(parent: Parent, keep: float, heldout: Tensor) -> float | None:
    """None where there is no gate, or it alone is more than may be read."""
    share = (3 * keep - 1) / 2
    if share <= 0 or not hasattr(parent.model.model.layers[0].mlp, "gate_proj"):
        return None
    gates: dict[nn.Module, Tensor] = {}

    def remember(mlp: nn.Module, gate: Tensor) -> None:
        gates[mlp] = nn.functional.silu(gate).abs()

    handles = [
        layer.mlp.gate_proj.register_forward_hook(lambda _, __, gate, mlp=layer.mlp: remember(mlp, gate))
        for layer in parent.model.model.layers
    ]
    with hidden_masked(parent, lambda mlp, _: largest(gates[mlp], share)):
        loss = evaluate(parent.model, parent.model, heldout).lm_loss
    for handle in handles:
        handle.remove()
    return loss


def random_loss(parent: Parent, keep: float, heldout: Tensor) -> float:
    seeded, width = torch.Generator().manual_seed(0), parent.shape.ffn_width
    masks = {layer.mlp: largest(torch.rand(width, generator=seeded), keep) for layer in parent.model.model.layers}
    with hidden_masked(parent, lambda mlp, hidden: masks[mlp].expand_as(hidden)):
        return evaluate(parent.model, parent.model, heldout).lm_loss


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main()
