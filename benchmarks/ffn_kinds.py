"""How fast one FFN of each kind is, against the best dense one and against what the bytes it reads allow.

    python benchmarks/ffn_kinds.py dip50 moe16k4 fff3 --dtype float32 --threads 1 --batch 1

Each kind's module has random weights, in as many copies as take 600 MB of dense weights: a call finds none of them in a
cache, as in a model. Inputs are new in every call. All variants take turns, round by round; what counts is the median
over the rounds of the ratio to the best dense implementation of the same round (F.linear, or torch.mv for one token).
The limit is the ratio of the bytes read (`Kind.touched`). A router or a tree with random weights chooses as evenly as
one can; thresholds are calibrated on such inputs.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import count
from statistics import median
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from blocklib import native
from blocklib.block import Subblock
from blocklib.ffn.dip import PrunedFFN, exceeded
from blocklib.kinds import FFN, kind_of
from blocklib.shape import Shape

HIDDEN, WIDTH = 2048, 8192
ROTATED_BYTES = 600e6

Call = Callable[[Tensor], Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="+", help="FFNs by their spelling: moe16k4, fff3, topk2048")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1, help="sequences, one token each")
    parser.add_argument("--rounds", type=int, default=40)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    print(f"{native.status()}; {asked.dtype}, {asked.threads} thread(s), batch {asked.batch}, {asked.rounds} rounds\n")
    with torch.inference_mode():
        print(table(asked.options, getattr(torch, asked.dtype), asked.batch, asked.rounds))


def table(options: Sequence[str], dtype: torch.dtype, batch: int, rounds: int) -> str:
    shape = Shape(
        layers=1, hidden=HIDDEN, heads=16, kv_heads=16, head_dim=128, ffn_width=WIDTH, vocabulary=1, tied=True,
        qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm=False,
    )  # fmt: skip
    dense = Subblock("ffn", str(WIDTH))
    subblocks = {text: kind_of("ffn", one).sized(one, shape) for text in options for one in [Subblock.parse(text)]}
    calls = dense_calls(dtype, batch) | {text: rotating(one, shape, dtype) for text, one in subblocks.items()}
    times = timed(calls, dtype, batch, rounds)
    best_dense = [min(row) for row in zip(*(times[name] for name in calls if name.startswith("dense")), strict=True)]
    whole = FFN["ffn"].touched(dense, shape, batch)
    lines = ["| FFN | bytes read | limit | ms | times the best dense |", "|---|---|---|---|---|"]
    for name, seconds in times.items():
        speed = median(dense_s / s for dense_s, s in zip(best_dense, seconds, strict=True))
        one = subblocks.get(name, dense)
        read = kind_of("ffn", one).touched(one, shape, batch) / whole
        lines.append(f"| {name} | {read:.1%} | {1 / read:.2f}x | {1e3 * median(seconds):.2f} | {speed:.2f}x |")
    return "\n".join(lines)


def dense_calls(dtype: torch.dtype, batch: int) -> dict[str, Call]:
    """The dense FFN in every way that may be fastest."""
    sizes = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
    stacks = [[random(*size, dtype=dtype) for size in sizes] for _ in range(copies(dtype))]
    turn = count()

    def by_linear(inputs_ND: Tensor) -> Tensor:
        gate, up, down = stacks[next(turn) % len(stacks)]
        hidden = functional.silu(functional.linear(inputs_ND, gate)) * functional.linear(inputs_ND, up)
        return functional.linear(hidden, down)

    def by_mv(inputs_ND: Tensor) -> Tensor:
        gate, up, down = stacks[next(turn) % len(stacks)]
        input_D = inputs_ND[0]
        return torch.mv(down, functional.silu(torch.mv(gate, input_D)) * torch.mv(up, input_D))

    calls: dict[str, Call] = {"dense, F.linear": by_linear}
    return calls | ({"dense, mv": by_mv} if batch == 1 else {})


def rotating(subblock: Subblock, shape: Shape, dtype: torch.dtype) -> Call:
    """The kind's module, another copy of its weights at each call."""
    kind = kind_of("ffn", subblock)
    config: dict[str, Any] = dict(
        hidden_size=shape.hidden, intermediate_size=shape.ffn_width, mlp_bias=False, gated_ffn=True, hidden_act="silu",
        initializer_range=0.02, ffn_options={},
    ) | kind.layer_config(subblock)  # fmt: skip
    assert kind.module is not None
    modules: list[nn.Module] = []
    for _ in range(copies(dtype)):
        with torch.device("meta"):
            module = kind.module(SimpleNamespace(**config))
        weights = {name: random(*tensor.shape, dtype=dtype) for name, tensor in module.state_dict().items()}
        module.load_state_dict(weights, assign=True)
        modules.append(module.eval())
        if isinstance(module, PrunedFFN) and module.by_threshold:
            calibrate(module, torch.randn(64, shape.hidden).to(dtype))
    turn = count()
    return lambda inputs_ND: modules[next(turn) % len(modules)](inputs_ND)


def calibrate(module: PrunedFFN, inputs_ND: Tensor) -> None:
    """Set the thresholds so that of such inputs as much is kept as the kind asks for."""
    module.input_threshold.copy_(exceeded(inputs_ND, module.kept_inputs))
    pruned_ND = inputs_ND.masked_fill(~module.mask(inputs_ND, module.kept_inputs, "input_threshold"), 0)
    module.hidden_threshold.copy_(exceeded(module.activated(module.in_proj(pruned_ND)), module.kept_hidden))


def timed(calls: dict[str, Call], dtype: torch.dtype, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round by round, every round in another order."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(-3, rounds):
        order = list(calls) if done % 2 else list(reversed(calls))
        for name in order:
            inputs_ND = torch.randn(batch, HIDDEN).to(dtype)
            started = perf_counter()
            calls[name](inputs_ND)
            if done >= 0:
                times[name].append(perf_counter() - started)
    return times


def copies(dtype: torch.dtype) -> int:
    return max(2, round(ROTATED_BYTES / (3 * HIDDEN * WIDTH * dtype.itemsize)))


def random(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype).uniform_(-0.02, 0.02)


if __name__ == "__main__":
    main()
