"""The gain from sharing the parent's pass, when the library is built and when it is scored.

    python benchmarks/library.py [--parent embedded] [--tokens 4096] [--rounds 3] [--out results.json]

Three ratios, each from interleaved rounds in one process:
  BLD overhead    all variants of all layers from one pass of the parent, over the variants' own forward and backward
                  (and optimizer step) on activations already at hand. At most 1.25 is claimed.
  BLD speed-up    tokens per second of that, times the variants, over separate runs: each variant alone, each with its
                  own full forward pass of the parent. At least 10 is claimed.
  scoring         one full forward per variant over one sweep for all, with identical scores. At least 1.8 is claimed.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import nas.terminal.quiet  # isort: skip
import torch
from torch import Tensor

from blocklib.activations import ComputedActivations, cached
from blocklib.assemble import assemble
from blocklib.block import Choice
from blocklib.distil import Texts, Training, _batches, _SubblockTraining, _targets, _train, normalised_error
from blocklib.initial_weights import build
from blocklib.parent import Parent, load_parent
from blocklib.stream import delta, rotary, variant
from nas.job.request import checkpoint_of
from nas.job.sections import Space
from nas.job.space import choices
from nas.scoring.replace_one import score
from nas.stages.evaluate import evaluate

assert nas.terminal.quiet


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def runs_of(parent: Parent, weights: dict[Choice, dict[str, Tensor]], tokens: int) -> list[_SubblockTraining]:
    """Every variant, fresh, ready to train."""
    return [
        _SubblockTraining(
            choice, variant(parent.model, choice, {k: v.clone() for k, v in tensors.items()}), Training(tokens, 1e-3)
        )
        for choice, tensors in weights.items()
    ]


def shared(parent: Parent, weights: dict[Choice, dict[str, Tensor]], ids_BT: Tensor, batch: int) -> None:
    texts = Texts(*3 * (cached(parent.model, ids_BT, batch),), batch=batch)
    for _ in _train(parent.model, runs_of(parent, weights, ids_BT.numel()), texts, lambda done, total: None):
        pass


def alone(parent: Parent, weights: dict[Choice, dict[str, Tensor]], ids_BT: Tensor, batch: int) -> float:
    """The variants' own work on the same batches, the parent's activations made beforehand and not counted."""
    runs = {run.choice: run for run in runs_of(parent, weights, ids_BT.numel())}
    for run in runs.values():
        run.layer.requires_grad_(True)
    optimizer = torch.optim.AdamW([{"params": list(run.layer.parameters())} for run in runs.values()], fused=True)
    total, batches = 0.0, _batches(len(ids_BT), batch)
    activations = ComputedActivations(parent.model, ids_BT)
    for _ in range(ids_BT.shape[0] // batch):
        at_hand = list(_targets(parent.model, list(runs), activations, next(batches)))
        started = time.perf_counter()
        for choice, entering, target, tables in at_hand:
            normalised_error(delta(runs[choice].layer, entering, tables), target).backward()
            torch.nn.utils.clip_grad_norm_(runs[choice].layer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += time.perf_counter() - started
    return total


def separately(parent: Parent, weights: dict[Choice, dict[str, Tensor]], ids_BT: Tensor, batch: int) -> None:
    """Each variant in a run of its own, each with a full forward pass of the parent per batch."""
    for choice, tensors in weights.items():
        batches = _batches(len(ids_BT), batch)
        (run,) = runs_of(parent, {choice: tensors}, ids_BT.numel())
        run.layer.requires_grad_(True)
        optimizer = torch.optim.AdamW(run.layer.parameters(), fused=True)
        for _ in range(ids_BT.shape[0] // batch):
            ids = ids_BT[next(batches)]
            with torch.no_grad():
                seen = parent.model.model(ids.long(), output_hidden_states=True, use_cache=False).hidden_states
            # The hidden states at hand are as large as the targets; which of them are read does not change the time.
            entering, target = seen[choice.layer], seen[-1] - seen[choice.layer]
            tables = rotary(parent.model, entering)
            normalised_error(delta(run.layer, entering, tables), target).backward()
            torch.nn.utils.clip_grad_norm_(run.layer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def one_by_one(parent: Parent, weights: dict[Choice, dict[str, Tensor]], ids_BT: Tensor) -> dict[Choice, float]:
    """Full forward passes of the parent and of each child."""
    return {
        choice: evaluate(
            parent.model, assemble(parent, parent.architecture.with_(choice), lambda c, t=tensors: t), ids_BT
        ).kl
        for choice, tensors in weights.items()
    }


def swept(parent: Parent, weights: dict[Choice, dict[str, Tensor]], ids_BT: Tensor) -> dict[Choice, float]:
    *_, last = score(parent, weights, ComputedActivations(parent.model, ids_BT))
    assert isinstance(last, dict)
    return {choice: fidelity.kl for choice, fidelity in last.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", default="embedded")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per round")
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    parent = load_parent(checkpoint_of(arguments.parent))
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.tokens // arguments.length, arguments.length)
    ids = torch.randint(0, parent.shape.vocabulary, shape, generator=generator)

    wanted = [c for c in choices(Space(fuse=None, drop_blocks=False), parent.shape) if not parent.own(c)]
    trainable = [part for choice in wanted for part in choice.parts if part.what.kind != "skip"]
    weights = {
        built.choice: built.first
        for built in build(parent, trainable, cached(parent.model, ids, 4), batch=4, fit=False)
    }
    scored = weights | {choice: {} for choice in wanted if choice not in weights}
    batch = max(1, len(ids) // 2)
    rows = []
    for _ in range(arguments.rounds):
        rows.append({
            "own_s": alone(parent, weights, ids, batch),
            "shared_s": seconds(lambda: shared(parent, weights, ids, batch)),
            "separate_s": seconds(lambda: separately(parent, weights, ids, batch)),
            "sweep_s": seconds(lambda: swept(parent, scored, ids)),
            "full_s": seconds(lambda: one_by_one(parent, scored, ids)),
        })  # fmt: skip
    one, all_at_once = one_by_one(parent, scored, ids), swept(parent, scored, ids)
    found = {
        "variants": len(weights),
        "bld_overhead": median(row["shared_s"] / row["own_s"] for row in rows),
        "bld_speedup": median(row["separate_s"] / row["shared_s"] for row in rows),
        "scoring_speedup": median(row["full_s"] / row["sweep_s"] for row in rows),
        "largest_score_difference": max(abs(one[choice] - all_at_once[choice]) for choice in one),
        "rounds": rows,
    }
    print(f"{found['variants']} variants of {parent.shape.layers} layers, {arguments.tokens} tokens per round")
    print(f"BLD, shared pass over the variants' own work: {found['bld_overhead']:.2f}x (claimed: at most 1.25x)")
    print(f"BLD, separate runs over shared pass:          {found['bld_speedup']:.1f}x (claimed: at least 10x)")
    print(f"scoring, full forwards over one sweep:        {found['scoring_speedup']:.2f}x (claimed: at least 1.8x)")
    print(f"largest difference of a score between the two: {found['largest_score_difference']:.1e}")
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
