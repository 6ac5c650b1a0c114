"""A space small enough to measure every architecture of: the truth that ways of choosing are held against.

    python benchmarks/exhaustive_space.py PARENT TEXT --out space.npz [--layers 5] [--ffn 50 25 0] [--offset 0] [--fit]

Each of the parent's first `--layers` layers keeps or skips its attention, and has its own FFN, one of so many percent
of its width, or (0) none; the other layers stay. All are scored whole, on 512 tokens that begin `--offset` after those
that calibrate; nothing is trained: weights are the library's first ones, with `--fit` moved by its least squares.
Writes each architecture's KL and rise of loss, by its options, with what every option costs.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import nas.terminal.quiet  # isort: skip
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from blocklib.activations import cached
from blocklib.assemble import parent_part
from blocklib.block import SKIP, Architecture, Choice, Subblock
from blocklib.initial_weights import build
from blocklib.kind import Weights
from blocklib.kinds import parent_block
from blocklib.parent import Parent, load_parent
from cost_models.analytic import choice_cost
from cost_models.scenario import Scenario
from nas.scoring.architectures import score_whole
from solvers.problem import LIMIT_TOLERANCE, Option, Problem, Solution

assert nas.terminal.quiet

CALIBRATION, SCORE, LENGTH = 8192, 512, 128
COSTS = ("parameters", "memory_bytes")
_SCENARIO = Scenario(device="cpu", dtype="float32", batch=4, prompt_tokens=256, generated_tokens=256)


@dataclass(frozen=True)
class Space:
    """`kl` and `rise` (of the LM loss) have an axis a slot, its options along it, the parent's own first."""

    names: tuple[tuple[str, ...], ...]
    costs: dict[str, list[list[float]]]
    kl: NDArray[np.float64]
    rise: NDArray[np.float64]

    @staticmethod
    def load(path: Path) -> "Space":
        held = np.load(path, allow_pickle=False)
        names = tuple(tuple(line.split()) for line in held["names"].tolist())
        costs = {
            cost: [held[cost][slot, : len(of_slot)].tolist() for slot, of_slot in enumerate(names)] for cost in COSTS
        }
        return Space(names, costs, held["kl"], held["rise"])

    def save(self, path: Path) -> None:
        widest = max(map(len, self.names))
        padded = {
            cost: np.array([row + [0.0] * (widest - len(row)) for row in rows]) for cost, rows in self.costs.items()
        }
        np.savez(
            path, names=np.array([" ".join(of_slot) for of_slot in self.names]), kl=self.kl, rise=self.rise, **padded
        )

    @property
    def slots(self) -> int:
        return len(self.names)

    def scores(self) -> list[list[float]]:
        """Replace-1 scores of every slot's options."""
        own = (0,) * self.slots
        return [
            [float(self.kl[(*own[:slot], index, *own[slot + 1 :])]) for index in range(len(of_slot))]
            for slot, of_slot in enumerate(self.names)
        ]

    def problem(self, cost: str, share: float) -> Problem:
        """Under this share of what the parent's own options cost."""
        options = tuple(
            Option(slot, 1, name, score, {each: self.costs[each][slot][index] for each in COSTS})
            for slot, of_slot in enumerate(zip(self.names, self.scores(), strict=True))
            for index, (name, score) in enumerate(zip(*of_slot, strict=True))
        )
        return Problem(self.slots, options, {cost: share * sum(rows[0] for rows in self.costs[cost])})

    def place(self, solution: Solution) -> tuple[int, ...]:
        return tuple(of_slot.index(option.name) for of_slot, option in zip(self.names, solution.options, strict=True))

    def totals(self, cost: str) -> NDArray[np.float64]:
        """The costs of every architecture."""
        return self._summed(self.costs[cost])

    def sums(self) -> NDArray[np.float64]:
        """Every architecture's sum of scores."""
        return self._summed(self.scores())

    def least(self, problem: Problem) -> float:
        """The KL of the best architecture within the limits: the truth."""
        within = np.ones(self.kl.shape, dtype=np.bool_)
        for limit in problem.limits:
            within &= self.totals(limit.cost) <= limit.value * (1 + LIMIT_TOLERANCE)
        return float(self.kl[within].min())

    def _summed(self, by_slot: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        total = np.zeros(self.kl.shape)
        for axis, values in enumerate(by_slot):
            total += np.array(values).reshape([-1 if each == axis else 1 for each in range(self.slots)])
        return total


def measured(parent: Parent, layers: int, shares: Sequence[int], ids: torch.Tensor, fit: bool) -> Space:
    """`ids` are tokens in sequences: the last 512 are scored on, the others calibrate."""
    shape, own = parent.shape, parent_block(parent.shape)
    widths = [Subblock("ffn", str(round(share * shape.ffn_width / 100 / 4) * 4)) if share else SKIP for share in shares]
    by_slot = [
        [Choice(slot // 2, role, what) for what in whats]
        for slot in range(2 * layers)
        for role, whats in [("ffn", [own.ffn, *widths]) if slot % 2 else ("attention", [own.attention, SKIP])]
    ]
    calibration, scored = ids[: -SCORE // LENGTH], ids[-SCORE // LENGTH :]
    wanted = [choice for choices in by_slot for choice in choices[1:] if choice.what != SKIP]
    weights = {
        built.choice: built.fitted for built in build(parent, wanted, cached(parent.model, calibration, 16), 16, fit)
    }
    rest = parent.architecture.choices()[2 * layers :]
    places = list(np.ndindex(*map(len, by_slot)))
    architectures = [Architecture.of((*picked, *rest), shape.layers) for picked in product(*by_slot)]

    def weights_of(choice: Choice) -> Weights:
        return weights.get(choice) or parent_part(parent, choice.layer, choice.role)

    *_, found = score_whole(parent, architectures, weights_of, scored)
    assert isinstance(found, dict)
    kl, rise = (np.zeros(tuple(map(len, by_slot))) for _ in range(2))
    for place, architecture in zip(places, architectures, strict=True):
        kl[place], rise[place] = found[architecture].kl, found[architecture].lm_loss
    costs = {
        cost: [[choice_cost(c, shape, _SCENARIO).metrics(_SCENARIO)[cost] for c in choices] for choices in by_slot]
        for cost in COSTS
    }
    return Space(tuple(tuple(str(c.what) for c in choices) for choices in by_slot), costs, kl, rise)


def tokens(parent: str, text: Path, offset: int) -> torch.Tensor:
    """Tokens of the text: the first ones calibrate, those `offset` after them score."""
    ids = AutoTokenizer.from_pretrained(parent)(text.read_text()[: 40 * (CALIBRATION + SCORE + offset)])["input_ids"]
    picked = ids[:CALIBRATION] + ids[CALIBRATION + offset : CALIBRATION + offset + SCORE]
    return torch.tensor(picked).view(-1, LENGTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parent")
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--ffn", type=int, nargs="+", default=[50, 25, 0], help="percent of the parent's width")
    parser.add_argument("--offset", type=int, default=0, help="tokens left out before those scored on")
    parser.add_argument("--fit", action="store_true")
    asked = parser.parse_args()
    parent = load_parent(asked.parent)
    space = measured(parent, asked.layers, asked.ffn, tokens(asked.parent, asked.text, asked.offset), asked.fit)
    space.save(asked.out)
    print(f"{space.kl.size:,} architectures in {asked.out}", file=sys.stderr)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
