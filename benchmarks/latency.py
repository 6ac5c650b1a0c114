"""Claim: the sum of measured costs predicts the latency of a whole child, and ranks children by it.

    python benchmarks/latency.py PARENT [--children 12] [--batch 4] [--prompt 64] [--generated 32] [--out latency.json]

Measures every geometry of a small space, then draws random architectures and times each, with random weights, side by
side with the parent. Prints predicted against timed latency (both for the whole batch, timed ones normalised by the
parent's), their mean absolute percentage error and Kendall's tau, and writes the same as JSON. Run it on a machine that
does nothing else.
"""

import argparse
import json
import random
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import fmean

from blocklib.block import Architecture, Block, Subblock
from blocklib.kinds import parent_block
from blocklib.parent import Parent, load_parent
from cost_models.analytic import architecture_cost
from cost_models.engines.engines import describe
from cost_models.engines.torch_eager import random_model, time_models
from cost_models.geometry import FIXED, Geometry, geometries
from cost_models.scenario import Scenario
from cost_models.timing.measure import Additivity, MeasuredGeometry, measure
from cost_models.timing.pair import Rounds


def main() -> None:
    asked = arguments()
    scenario = Scenario(asked.device, asked.dtype, asked.batch, asked.prompt, asked.generated, asked.threads)
    rounds = Rounds(most=asked.rounds, seconds=asked.seconds)
    parent = load_parent(asked.parent)
    generator = random.Random(asked.seed)
    children = [random_architecture(parent, generator) for _ in range(asked.children)]
    measured, additivity = measured_parts(parent, children, scenario, rounds)
    rows = list(compared(parent, children, scenario, rounds, measured))
    summary = {
        "parent": asked.parent,
        "scenario": scenario.key(),
        "hardware": describe(scenario),
        "mape": fmean(abs(row["predicted_s"] / row["timed_s"] - 1) for row in rows),
        "kendall_tau": kendall_tau([(row["predicted_s"], row["timed_s"]) for row in rows]),
        "worst_spread_of_timed": max(row["spread"] for row in rows),
        "additivity_prefill_worst": additivity.prefill.worst,
        "additivity_decode_worst": additivity.decode.worst if additivity.decode else None,
    }
    for name, value in summary.items():
        print(f"{name:26} {value}")
    table = [row | {"architecture": str(child)} for row, child in zip(rows, children, strict=True)]
    asked.out.write_text(json.dumps(summary | {"children": table}, indent=2) + "\n")


def random_architecture(parent: Parent, generator: random.Random) -> Architecture:
    """Each subblock of each layer drawn by itself; half of the children keep most of what the parent has."""
    shape = parent.shape
    own = parent_block(parent.shape)
    attentions = [Subblock("kv", str(n)) for n in range(1, shape.kv_heads + 1) if shape.kv_heads % n == 0]
    ffns = [Subblock("ffn", str(max(1, shape.ffn_width * percent // 100))) for percent in (25, 50, 75, 100)]
    others = [Subblock("linear"), Subblock("skip")]
    kept = generator.choice((0.0, 0.6))

    def draw(parents: Subblock, options: list[Subblock]) -> Subblock:
        return parents if generator.random() < kept else generator.choice(options)

    blocks = (
        Block(draw(own.attention, attentions + others), draw(own.ffn, ffns + others)) for _ in range(shape.layers)
    )
    return Architecture(tuple(blocks))


def measured_parts(
    parent: Parent, children: list[Architecture], scenario: Scenario, rounds: Rounds
) -> tuple[dict[Geometry, MeasuredGeometry], Additivity]:
    """The time of every geometry in `children`, and how well the parent's own parts add up."""
    wanted = {geometry for child in children for choice in child.choices() for geometry in geometries(choice)}
    seen = list(measure(parent.model.config, sorted(wanted, key=str), scenario, rounds))
    (additivity,) = (one for one in seen if isinstance(one, Additivity))
    return {one.geometry: one for one in seen if isinstance(one, MeasuredGeometry)}, additivity


def compared(
    parent: Parent,
    children: list[Architecture],
    scenario: Scenario,
    rounds: Rounds,
    measured: dict[Geometry, MeasuredGeometry],
) -> Iterator[dict[str, float]]:
    """Predicted and timed latency of each child, in seconds, as it is timed."""
    config = parent.model.config
    parent_model = random_model(config, parent.architecture, scenario)
    parent_s = predicted_s(parent.architecture, parent, scenario, measured)
    print(f"{'predicted ms':>12} {'timed ms':>10} {'error':>7}  architecture")
    for child in children:
        latency = time_models(parent_model, random_model(config, child, scenario), scenario, rounds).latency
        # The ratio, not the seconds: the machine is not as fast now as it was when the parts were measured.
        row = {
            "predicted_s": predicted_s(child, parent, scenario, measured),
            "timed_s": latency.ratio * parent_s,
            "spread": latency.spread,
        }
        error = row["predicted_s"] / row["timed_s"] - 1
        print(f"{1e3 * row['predicted_s']:12.2f} {1e3 * row['timed_s']:10.2f} {error:+7.1%}  {child}", flush=True)
        yield row


def predicted_s(
    child: Architecture, parent: Parent, scenario: Scenario, measured: dict[Geometry, MeasuredGeometry]
) -> float:
    parts = [FIXED, *(part for choice in child.choices() for part in geometries(choice))]
    cost = sum((measured[part].cost for part in parts), architecture_cost(child, parent.shape, scenario))
    return cost.metrics(scenario)["latency_s"]


def kendall_tau(pairs: list[tuple[float, float]]) -> float:
    """Pairs of points in the same order, less those in the other, over all; ties are in neither (tau-a)."""
    orders = [(a[0] - b[0]) * (a[1] - b[1]) for a, b in combinations(pairs, 2)]
    return sum((order > 0) - (order < 0) for order in orders) / len(orders)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicted against timed latency of random children.")
    parser.add_argument("parent", help="a local folder or a hub id")
    parser.add_argument("--children", type=int, default=12, help="at least 2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--generated", type=int, default=32)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=40, help="of each comparison, at most")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each comparison, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("latency.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
