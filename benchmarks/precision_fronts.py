"""Fronts of a search that chose precisions and shapes: of either alone, and of both, beside uniform precisions.

    python benchmarks/precision_fronts.py SEARCH [--db FILE] [--by file|decode] [--budgets 8] [--least 0.5]
        [--time] [--made]

At each budget the three restricted problems are solved exactly, and every answer is assembled from the library, whose
parts are rounded with feedback, and evaluated on held-out text; nothing is healed or rounded again. *shapes only*
stores every part in one precision, the best for it at that budget. *uniform* is the parent in one precision within the
budget, the file of least KL that llama.cpp's own quantiser writes. Budgets of the file run in equal ratios from
`--most` throughout to `--least` of `--last` throughout; those of a decode step, from the parent's to `--least` of it.

`--made`: every answer is made as the search makes its child, healed by its job and rounded as a whole, and so is
*uniform*. `--time`: decode steps of all answers, in turns with the parent's. Answers are trials of the search, so a
second run makes and times none again.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nas.terminal.quiet  # isort: skip
import torch

from blocklib.assemble import assemble
from blocklib.block import Architecture
from blocklib.formats.gguf import as_stored
from cost_models.analytic import architecture_cost
from db import models
from db.store import Store
from nas.errors import BudgetNotMetError
from nas.files.database import opened
from nas.job.space import precisions
from nas.job.units import Limit
from nas.scoring.fidelity import Fidelity
from nas.solve.restricted import restricted, stored_in
from nas.solve.restricted import uniform as uniform_parts
from nas.solve.solve import Measured, measured, solve, trial_row
from nas.stages.child import healing_key
from nas.stages.evaluate import Evaluator, perplexity
from nas.stages.library import choice_weights
from nas.stages.prepare import Job
from nas.stages.real_values import Reality
from nas.terminal.console import Terminal

assert nas.terminal.quiet

UNIFORM, SHAPES, BITS, BOTH = "uniform", "shapes only", "precisions only", "both"


@dataclass(frozen=True)
class Uniform:
    """The parent in one precision: bytes of its file, KL and perplexity."""

    precision: str
    file_bytes: int
    kl: float
    perplexity: float


@dataclass(frozen=True)
class Answer:
    """An architecture, as a trial, with the KL and the perplexity of its child."""

    kl: float
    perplexity: float
    trial: models.TrialRow


class Models:
    """Architectures of a search, assembled and evaluated, each once."""

    def __init__(self, job: Job):
        self._job = job
        self._evaluator = Evaluator(job.parent.model, torch.from_numpy(job.tokens.evaluation.copy()))
        self._known: dict[Architecture, Fidelity] = {}

    def evaluated(self, architecture: Architecture) -> Fidelity:
        job = self._job
        if architecture not in self._known:
            keys = job.built_keys(architecture.choices())
            weights_of = partial(choice_weights, job.parent, job.library, keys=keys)
            self._known[architecture] = self._evaluator.evaluate(assemble(job.parent, architecture, weights_of))
        return self._known[architecture]

    def answer(self, trial: models.TrialRow) -> Answer:
        """As its parts from the library make it."""
        held = self.evaluated(Architecture.parse(trial.architecture))
        return Answer(held.kl, perplexity(held.lm_loss), trial)

    def uniform(self, precision: str) -> Uniform:
        job = self._job
        found = self._evaluator.evaluate(as_stored(job.parent.whole(), precision))
        held = architecture_cost(
            job.parent.architecture, job.parent.shape, replace(job.scenario, dtype=precision)
        ).weight_bytes
        return Uniform(precision, held, found.kl, perplexity(found.lm_loss))


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parsed(arguments)
    with opened(asked.db, "write") as store:
        search = store.find_search(asked.search)
        known = measured(store, search)
        with Reality(store, search, Terminal(stderr=True)) as reality:
            job = reality.job
            built = Models(job)
            uniform = [built.uniform(name) for name in precisions(job.request.space, job.parent.shape)]
            for row in uniform:
                step = "" if asked.by == "file" else f", decode {value(known, row, 'decode') * 1e3:.2f} ms predicted"
                print(f"uniform {row.precision}: {mb(row.file_bytes)}, KL {row.kl:.4f}, {row.perplexity:.2f}{step}")
            print(f"\n| {asked.by} | uniform | {SHAPES} | {BITS} | {BOTH} |\n|---|---|---|---|---|", flush=True)
            for limit in limits(known, uniform, asked):
                cells = [] if asked.made else [uniform_cell(known, uniform, limit)]
                for space in (UNIFORM, SHAPES, BITS, BOTH) if asked.made else (SHAPES, BITS, BOTH):
                    chosen = answer(store, known, healing_key(job) if asked.made else None, limit, space)
                    if chosen is None:
                        cells.append("-")
                        continue
                    found = made(reality, chosen) if asked.made else built.answer(chosen)
                    cells.append(cell(replace(found, trial=reality.timed(found.trial)) if asked.time else found))
                print(f"| {limit} | {' | '.join(cells)} |", flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search")
    parser.add_argument("--db", type=Path)
    parser.add_argument("--by", choices=("file", "decode"), default="file")
    parser.add_argument("--budgets", type=int, default=8)
    parser.add_argument("--most", default="q8_0", help="the uniform precision whose file is the first budget")
    parser.add_argument("--last", default="q4_0", help="the uniform precision that the last budget is a share of")
    parser.add_argument("--least", type=float, default=0.5)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--made", action="store_true")
    return parser.parse_args(arguments)


def mb(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def limits(known: Measured, uniform: Sequence[Uniform], asked: argparse.Namespace) -> Iterator[Limit]:
    """In equal ratios, both ends included."""
    most, least = 1.0, asked.least
    if asked.by == "file":
        sizes = {row.precision: row.file_bytes for row in uniform}
        most, least = sizes[asked.most], asked.least * sizes[asked.last]
    else:
        most, least = known.whole("decode"), asked.least * known.whole("decode")
    for step in range(asked.budgets):
        yield Limit(asked.by, most * (least / most) ** (step / (asked.budgets - 1)), relative=False)


def spaces(known: Measured, space: str) -> Iterator[Measured]:
    """The search with the options of one space; of shapes alone, once for each precision."""
    if space == BOTH:
        yield known
    elif space == BITS:
        yield restricted(known, "precisions")
    else:
        for part in (stored_in(known, precision) for precision in uniform_parts(known)):
            yield part if space == SHAPES else restricted(part, "precisions")


def answer(
    store: Store, known: Measured, heal: dict[str, Any] | None, limit: Limit, space: str
) -> models.TrialRow | None:
    """The best answer of the space within the limit; None where there is none. `heal`: as its child is healed."""
    found = []
    for part in spaces(known, space):
        try:
            found.append((part, solve(part, (limit,))))
        except BudgetNotMetError:
            continue
    if not found:
        return None
    part, best = min(found, key=lambda pair: pair[1].score)
    return store.add_trial(trial_row(part, replace(best, solver=space), (limit,), heal))


def made(reality: Reality, trial: models.TrialRow) -> Answer:
    """As the search makes it."""
    trial = reality.made(trial)
    assert trial.kl is not None
    assert trial.perplexity is not None
    return Answer(trial.kl, trial.perplexity, trial)


def uniform_cell(known: Measured, uniform: Sequence[Uniform], limit: Limit) -> str:
    """The best uniform file within a limit on bytes, or on the predicted decode step."""
    fitting = [row for row in uniform if value(known, row, limit.metric) <= limit.value * (1 + 1e-9)]
    if not fitting:
        return "-"
    best = min(fitting, key=lambda row: row.kl)
    return f"{best.kl:.4f}, {best.perplexity:.2f} ({best.precision})"


def value(known: Measured, row: Uniform, metric: str) -> float:
    """Bytes of the file, or the predicted decode step of the parent in this precision."""
    if metric == "file":
        return float(row.file_bytes)
    whole = sum((known.costs[choice] for choice in uniform_parts(known)[row.precision]), known.fixed)
    return whole.metrics(known.scenario)[f"{metric}_s"]


def cell(found: Answer) -> str:
    """KL, perplexity, and file; the decode step beside the parent's, where it was timed."""
    assert found.trial.predicted_file_bytes is not None
    text = f"{found.kl:.4f}, {found.perplexity:.2f} ({mb(found.trial.predicted_file_bytes)}"
    step, own = found.trial.decode_s, (found.trial.details or {}).get("parent", {}).get("decode_s")
    if step is not None and own:
        text += f", decode {step / own:.1%}"
    return text + ")"


if __name__ == "__main__":
    main()
