"""How long `nas solve --table` takes, the interpreter's start counted, on a table of 80 layers with 16 options each.

    python benchmarks/table.py [--runs 7] [--layers 80] [--options 16] [--share 0.6] [--seed 0] [--out table.json]

The numbers are random, seeded, and of the sort a block library has: what costs less harms more, early and late layers
most, and no two options are alike. Two budgets bind, each a share of what the largest option of every layer costs.
Prints the median of the runs, each a process of its own, and what was proven.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Library = dict[str, dict[str, Any]]


def library(layers: int, options: int, seed: int = 0) -> Library:
    """Layer -> option -> stats and metrics; option 0 is the parent's own, which costs most and harms nothing."""
    numbers = random.Random(seed)
    return {f"layer_{layer}": dict(_option(numbers, layer / layers, i, options) for i in range(options))
            for layer in range(layers)}  # fmt: skip


def _option(numbers: random.Random, depth: float, index: int, options: int) -> tuple[str, dict[str, Any]]:
    kept = 1 - index / options
    memory_mib = 1700 * kept * numbers.uniform(0.95, 1.05)
    importance = 0.02 + 0.2 * (2 * depth - 1) ** 2
    stats = {
        "memory_mib": memory_mib,
        "runtime_ms": 0.2 + 2.1 * kept * numbers.uniform(0.9, 1.1),
        "num_params": round(memory_mib * 2**19),
        "attention": {"num_kv_heads": max(1, round(8 * kept))},
    }
    harm = importance * (1 / kept - 1) * numbers.uniform(0.8, 1.2)
    return f"ffn_{kept:.4g}", {"stats": stats, "metrics": {"kl_div": harm, "lm_loss": 2 + harm / 2}}


def budgets(found: Library, share: float) -> list[str]:
    """The share of the largest options' memory, and of their runtime."""
    limits = {
        name: share * sum(max(option["stats"][name] for option in options.values()) for options in found.values())
        for name in ("memory_mib", "runtime_ms")
    }
    return [f"--budget=stats.{name}={limit:.6g}" for name, limit in limits.items()]


def seconds_of(line: list[str]) -> tuple[float, dict[str, Any]]:
    started = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return time.monotonic() - started, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--options", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.6, help="of the largest options' memory and runtime")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the table here")
    arguments = parser.parse_args()
    found = library(arguments.layers, arguments.options, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.out or Path(folder, "table.json")
        path.write_text(json.dumps(found))
        line = [sys.executable, "-m", "nas.cli.main", "solve", "--table", str(path), "--objective", "metrics.kl_div",
                *budgets(found, arguments.share), "--json"]  # fmt: skip
        runs = [seconds_of(line) for _ in range(arguments.runs)]
    taken = [seconds for seconds, _ in runs]
    answer = runs[-1][1]
    print(f"{arguments.layers} layers x {arguments.options} options: median {statistics.median(taken):.2f} s of "
          f"{len(taken)} runs ({min(taken):.2f} to {max(taken):.2f}), of which solving {answer['seconds']:.2f} s; "
          f"{answer['status']}, gap {answer['gap']:.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
