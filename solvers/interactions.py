"""What options do to each other, learnt from whole architectures: an architecture's worth as a sum over its options and
over pairs of them.

The sum of scores is where it begins. What that missed of the architectures that were evaluated is spread over their
options and pairs of options by kernel ridge regression, two architectures being the more alike the more of the slots
they fill with the same options, `overlap`: the kernel is overlap + PAIRS overlap^2. Its answer is a term an option and
a term a pair of options, of those only that stood in evaluated architectures: as many as there may be of either, the
regression is as large as the number of evaluations. Legend of shape suffixes: N evaluated, O options, X those of one
architecture, P some options.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solvers.line import Indices, Line, Weights

PAIRS = 3.0
"""How much more of what a sum misses is laid to pairs than to single options."""
NOISE = 1e-3
"""Of the kernel's largest value: what is evaluated is all but believed."""


@dataclass(frozen=True)
class Interactions:
    """`held_NO` is the share of the slots that an evaluated architecture's option fills, 0 of what it does not hold;
    `weight_N` how much each architecture counts in the prediction of others."""

    line: Line
    scores: Weights
    shares: Weights
    held_NO: Weights
    weight_N: Weights

    @staticmethod
    def of(line: Line, scores: Weights, tilings: Sequence[Indices], worths: Sequence[float]) -> "Interactions":
        """Learnt from tilings, as indices of the options, and what each is really worth. None of them: nothing is."""
        shares = (line.ends - line.firsts) / line.slots
        held_NO = np.zeros((len(tilings), len(scores)))
        for row, tiling in zip(held_NO, tilings, strict=True):
            row[tiling] = shares[tiling]
        overlap_NN = held_NO @ (held_NO > 0).T
        missed_N = np.array(worths) - np.array([scores[tiling].sum() for tiling in tilings])
        damped_NN = overlap_NN + PAIRS * overlap_NN**2 + NOISE * (1 + PAIRS) * np.eye(len(tilings))
        return Interactions(line, scores, shares, held_NO, np.linalg.solve(damped_NN, missed_N))

    def worth(self, tiling: Indices) -> float:
        """Predicted."""
        overlap_N = self.held_NO[:, tiling].sum(1)
        return float(self.scores[tiling].sum() + self.weight_N @ (overlap_N + PAIRS * overlap_N**2))

    def around(self, tiling: Indices) -> Weights:
        """Every option's score in the context of `tiling`, whose other options stay: their differences are those of the
        predicted worths, exactly, wherever one option takes another's place."""
        firsts, ends = self.line.firsts, self.line.ends
        beside_OX = (ends[:, None] <= firsts[tiling]) | (firsts[:, None] >= ends[tiling])
        context_NO = self.held_NO[:, tiling] @ beside_OX.T
        terms_NO = self.held_NO * (1 + PAIRS * (self.held_NO + 2 * context_NO))
        scored: Weights = self.scores + self.weight_N @ terms_NO
        return scored

    def pairs(self, some: Indices, others: Indices) -> Weights:
        """The terms of each of some options together with each of others, [P, P]."""
        terms_PP: Weights = 2 * PAIRS * (self.held_NO[:, some].T * self.weight_N) @ self.held_NO[:, others]
        return terms_PP
