"""The cost of freed memory that goes back to the system between passes of an FFN, and the gain from keeping it.

    python benchmarks/freed_memory.py [--widths 112 216 432 864] [--hidden 192] [--tokens 4096] [--threads 2]

The widths are gone through twice, as the C library adapts to what it has seen, and then once with memory kept
(`blocklib/allocator.py`): milliseconds of a pass, medians of 30, and page faults per pass.
"""

import argparse
import resource
import time
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from blocklib.allocator import kept_memory

_PASSES = 30


def measured(width: int, x_TD: Tensor) -> tuple[float, float]:
    """Milliseconds and page faults of a pass."""
    hidden = x_TD.shape[1]
    gate, up, down = torch.randn(width, hidden), torch.randn(width, hidden), torch.randn(hidden, width)
    seconds, before = [], 0
    for number in range(_PASSES + 2):
        if number == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        started = time.perf_counter()
        linear(silu(linear(x_TD, gate)) * linear(x_TD, up), down)
        seconds.append(time.perf_counter() - started)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return median(seconds[2:]) * 1e3, faults / _PASSES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[112, 216, 432, 864])
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    x_TD = torch.randn(asked.tokens, asked.hidden)
    print("| width | first | again | kept |\n|---|---|---|---|")
    with torch.inference_mode():
        runs = [[measured(width, x_TD) for width in asked.widths] for _ in range(2)]
        with kept_memory():
            runs.append([measured(width, x_TD) for width in asked.widths])
    for width, *cells in zip(asked.widths, *runs, strict=True):
        print(f"| {width} | " + " | ".join(f"{ms:.1f} ms, {faults:.0f} faults" for ms, faults in cells) + " |")


if __name__ == "__main__":
    main()
