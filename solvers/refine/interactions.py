"""Interactions of options, learnt from whole architectures: an architecture's worth as a sum over its options and
over pairs of them.

The prediction starts from the sum of scores. Kernel ridge regression spreads the error of that sum, on the evaluated
architectures, over options and pairs of options. Two options of the same slots are the more alike the nearer their
scores are in ratio, as 2ab / (a^2 + b^2), which is 1 for an option and itself; two architectures overlap by how alike
they are, slot by slot, and the kernel is overlap + PAIRS overlap^2. So its answer is a term an option and a term a pair
of options, told from few evaluations since what is learnt of an option holds, less, of those like it; and the
regression is only as large as the number of evaluations, however many options and pairs there are. Legend of shape
suffixes: N evaluated, O options, X those of one architecture, P some options.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solvers.exact.program import scale_of
from solvers.exact.shortest_path import Indices, Line, Weights

PAIRS = 3.0
"""How much more of the error of a sum is attributed to pairs than to single options."""
NOISE = 1e-3
"""The noise, as a share of the kernel's largest value: evaluations are almost believed."""
_LEAST = 1e-6
"""Scores below this share of the largest are alike."""


@dataclass(frozen=True)
class Interactions:
    """`alike_NO` is the share of the slots that an option fills, times how alike it is to the option that an evaluated
    architecture has at the same slots, 0 where that has none; `weight_N` how much each counts in a prediction."""

    line: Line
    scores: Weights
    shares: Weights
    alike_NO: Weights
    weight_N: Weights

    @staticmethod
    def of(line: Line, scores: Weights, tilings: Sequence[Indices], worths: Sequence[float]) -> "Interactions":
        """Learn from tilings (indices of options) and the value of each. Without any it predicts the sum of scores."""
        shares = (line.ends - line.firsts) / line.slots
        sizes, step_O = np.maximum(np.abs(scores), _LEAST * scale_of(scores)), line.steps.of_option
        alike_NO = np.zeros((len(tilings), len(scores)))
        for row, tiling in zip(alike_NO, tilings, strict=True):
            size_of_step = np.zeros(len(line.steps.starts))
            size_of_step[step_O[tiling]] = sizes[tiling]
            beside = size_of_step[step_O]
            row[:] = shares * 2 * sizes * beside / (sizes**2 + beside**2)
        overlap_NN = np.array([alike_NO[:, tiling].sum(1) for tiling in tilings]).reshape(len(tilings), -1)
        missed_N = np.array(worths) - np.array([scores[tiling].sum() for tiling in tilings])
        damped_NN = overlap_NN + PAIRS * overlap_NN**2 + NOISE * (1 + PAIRS) * np.eye(len(tilings))
        return Interactions(line, scores, shares, alike_NO, np.linalg.solve(damped_NN, missed_N))

    def worth(self, tiling: Indices) -> float:
        """The predicted value of a tiling."""
        overlap_N = self.alike_NO[:, tiling].sum(1)
        return float(self.scores[tiling].sum() + self.weight_N @ (overlap_N + PAIRS * overlap_N**2))

    def around(self, tiling: Indices) -> Weights:
        """Every option's score in the context of `tiling`, whose other options stay: their differences are those of the
        predicted worths, exactly, wherever one option takes another's place."""
        firsts, ends = self.line.firsts, self.line.ends
        beside_OX = (ends[:, None] <= firsts[tiling]) | (firsts[:, None] >= ends[tiling])
        context_NO = self.alike_NO[:, tiling] @ beside_OX.T
        terms_NO = self.alike_NO * (1 + PAIRS * (self.alike_NO + 2 * context_NO))
        scored: Weights = self.scores + self.weight_N @ terms_NO
        return scored

    def pairs(self, some: Indices, others: Indices) -> Weights:
        """The terms of each of some options together with each of others, [P, P]."""
        terms_PP: Weights = 2 * PAIRS * (self.alike_NO[:, some].T * self.weight_N) @ self.alike_NO[:, others]
        return terms_PP
