"""Claim: the sum of measured costs predicts the latency of whole children in an engine, and ranks children by it.

    python benchmarks/costs.py PARENT [--engine torch] [--dtype float32] [--children 40] [--calibrate 24] [--in-a-row]
        [--batch 1] [--prompt 128] [--generated 128] [--threads N] [--out costs.json]

Draws random architectures, and times each, with random weights, in turns with the parent: `--children` unseen ones
twice, and `--calibrate` others. Every geometry in them is measured before that, and once more after it; the others are
timed among the unseen ones. So whatever the machine does for minutes, all of them get. Prints how far the plain sum is
off, how far the sum calibrated on the others is, and how far the second timing is from the first, which no prediction
can beat: mean absolute error, bias, worst and Kendall's tau of the latency as a share of the parent's. Run it on a
machine that does nothing else.
"""

import argparse
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from blocklib.block import Architecture, Block, Subblock
from blocklib.checkpoint import inspect
from blocklib.hub import folder_of
from blocklib.kinds import parent_architecture, parent_block
from blocklib.loading import readable
from blocklib.model import PuzzleNasConfig
from blocklib.parent import child_config
from blocklib.shape import Shape
from cost_models.engines.engines import describe, engine_of
from cost_models.geometry import geometries
from cost_models.scenario import USUAL_DTYPE, Scenario
from cost_models.timing.calibration import ArchitectureTiming, Parts, calibrated, counted, predicted_share
from cost_models.timing.measure import measure
from cost_models.timing.measured_geometry import MeasuredGeometry
from cost_models.timing.pair import Rounds
from cost_models.timing.prediction_error import PredictionError, prediction_error

PHASES = ("prefill_s", "decode_s")


def main() -> None:
    asked = arguments()
    scenario = Scenario("cpu", asked.dtype or USUAL_DTYPE[asked.engine], asked.batch, asked.prompt, asked.generated,
                        asked.threads, asked.engine)  # fmt: skip
    rounds = Rounds(least=7, most=asked.rounds, tolerance=0.003, seconds=asked.seconds)
    found = readable(inspect(folder_of(asked.parent)))
    parent = parent_architecture(found.shape)
    config = child_config(found.config, parent, found.shape)
    drawn = random.Random(asked.seed)
    unseen, others = (
        [random_architecture(found.shape, drawn) for _ in range(count)] for count in (asked.children, asked.calibrate)
    )
    clock = Clock(config, parent, scenario, rounds)
    before = clock.parts([parent, *unseen, *others])
    if asked.in_a_row:
        timings = clock.timed(mixed(unseen, others), takes=2)
    else:
        timings = clock.timed(mixed(unseen, others[::2])) + clock.timed(mixed(unseen, others[1::2]))
    parts = mean_of(before, clock.parts([parent, *unseen, *others]), parent)
    first, again = zip(*([one for one in timings if one.architecture == child] for child in unseen), strict=True)
    fitted = [one for one in timings if one.architecture in others]
    tried = {"plain sum": parts, "calibrated": calibrated(parts, parent, fitted)}
    shares = {
        name: [predicted_share(each, child, parent, scenario) for child in unseen] for name, each in tried.items()
    }
    takes = [[timing.latency_share(scenario) for timing in timings] for timings in (first, again)]
    measured = [fmean(pair) for pair in zip(*takes, strict=True)]
    errors = {name: prediction_error(predicted, measured) for name, predicted in shares.items()}
    errors["repeat"] = prediction_error(takes[1], takes[0])
    print(f"{scenario.key()} on {describe(scenario)}")
    for name, error in errors.items():
        print(f"{name:12} {said(error)}")
    asked.out.write_text(json.dumps({
        "scenario": scenario.key(), "hardware": describe(scenario),
        "errors": {name: asdict(error) for name, error in errors.items()},
        "predicted": shares, "measured": takes, "parts": parts,
        "timings": {name: list(map(plain, timings)) for name, timings in
                    (("first", first), ("again", again), ("fitted", fitted))},
    }, indent=2))  # fmt: skip


def random_architecture(shape: Shape, drawn: random.Random) -> Architecture:
    """Each subblock of each layer drawn by itself; each child keeps another share of what the parent has."""
    own = parent_block(shape)
    attentions = [Subblock("kv", str(n)) for n in range(1, shape.kv_heads + 1) if shape.kv_heads % n == 0]
    ffns = [Subblock("ffn", str(max(32, shape.ffn_width * percent // 100 // 32 * 32))) for percent in (25, 50, 75)]
    kept = drawn.random() * 0.9

    def draw(parents: Subblock, options: list[Subblock]) -> Subblock:
        return parents if drawn.random() < kept else drawn.choice(options)

    skip = Subblock("skip")
    return Architecture(
        tuple(
            Block(draw(own.attention, [*attentions, skip]), draw(own.ffn, [*ffns, skip])) for _ in range(shape.layers)
        )
    )


@dataclass(frozen=True)
class Clock:
    """Times parts, and architectures with random weights in turns with the parent."""

    config: PuzzleNasConfig
    parent: Architecture
    scenario: Scenario
    rounds: Rounds

    def parts(self, architectures: list[Architecture]) -> dict[str, dict[str, float]]:
        """By phase, the seconds of every geometry in the architectures, by its name."""
        wanted = {part for each in architectures for choice in each.choices() for part in geometries(choice)}
        engine, times = engine_of(self.scenario.engine), {}
        for event in measure(self.config, sorted(wanted, key=str), self.scenario, self.rounds, engine=engine):
            if isinstance(event, MeasuredGeometry):
                times[str(event.geometry)] = event
        return {phase: {name: getattr(time, phase) for name, time in times.items()} for phase in PHASES}

    def timed(self, children: list[Architecture], takes: int = 1) -> list[ArchitectureTiming]:
        """So many timings of each child in a row."""
        engine = engine_of(self.scenario.engine)
        found = []
        with engine.random(self.config, self.parent, self.scenario) as control:
            for child in children:
                with engine.random(self.config, child, self.scenario) as other:
                    times = [engine.time(control, other, self.scenario, self.rounds) for _ in range(takes)]
                found += [ArchitectureTiming.of(child, time) for time in times]
                print(f"{found[-1].latency_share(self.scenario):6.1%} {child}", flush=True)
        return found


def mixed(some: list[Architecture], others: list[Architecture]) -> list[Architecture]:
    """The others spread evenly among some."""
    placed = [(index / len(each), one) for each in (some, others) for index, one in enumerate(each)]
    return [one for _, one in sorted(placed, key=lambda pair: pair[0])]


def mean_of(one: Parts, other: Parts, parent: Architecture) -> dict[str, dict[str, float]]:
    """The mean of two measurements, the second on the clock of the first, by the parent's sum of its parts."""
    found = {}
    for phase, seconds in one.items():
        whole, again = (sum(n * each[phase][name] for name, n in counted(parent).items()) for each in (one, other))
        scale = whole / again if again else 1.0
        found[phase] = {name: (value + scale * other[phase][name]) / 2 for name, value in seconds.items()}
    return found


def plain(timing: ArchitectureTiming) -> dict[str, object]:
    phases = {phase: asdict(timed) for phase, timed in timing.phases.items()}
    return {"architecture": str(timing.architecture)} | phases


def said(error: PredictionError) -> str:
    return f"MAPE {error.mape:6.2%}  bias {error.bias:+6.2%}  worst {error.worst:+6.1%}  tau {error.tau or 0.0:.3f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicted against timed latency of random children, in an engine.")
    parser.add_argument("parent", help="a local folder or a hub id; only its sizes are read")
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--dtype", default=None, help="by the engine's name; default: its usual one")
    parser.add_argument("--children", type=int, default=40, help="unseen ones, each timed twice; at least 2")
    parser.add_argument("--calibrate", type=int, default=24, help="others, to calibrate the parts")
    parser.add_argument("--in-a-row", action="store_true", help="time both at once: for engines that start slowly")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generated", type=int, default=128)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=30, help="of each comparison, at most")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each comparison, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("costs.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
