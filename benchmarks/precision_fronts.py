"""Fronts of a search that chose precisions and shapes: of either alone, and of both, beside uniform precisions.

    python benchmarks/precision_fronts.py SEARCH [--db FILE] [--by file|decode] [--budgets 8] [--least 0.5]
        [--time] [--made]

At each budget the three restricted problems are solved exactly, and every answer is assembled from the library, whose
parts are rounded with feedback, and evaluated on held-out text; nothing is healed or rounded again. `--made`: every
answer is made as the search makes its child, healed by its job and rounded as a whole. *shapes only* stores every part
in one precision, the best for it at that budget. Budgets of the file run in equal ratios from uniform q8_0 down to
`--least` of uniform q4_0; those of a decode step, down to `--least` of the parent's. *uniform* is the file within the
budget of least KL, written by llama.cpp's own quantiser. `--time`: decode steps of all answers, in turns with the
parent's; they are trials of the search, so a second run times none again.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

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
from nas.stages.evaluate import Evaluator, perplexity
from nas.stages.library import choice_weights
from nas.stages.prepare import Job
from nas.stages.real_values import Reality
from nas.terminal.console import Terminal

assert nas.terminal.quiet

BITS, SHAPES, BOTH = "precisions only", "shapes only", "both"


@dataclass(frozen=True)
class Uniform:
    """The parent in one precision: bytes of its file, KL and perplexity."""

    precision: str
    file_bytes: int
    kl: float
    perplexity: float


@dataclass(frozen=True)
class Answer:
    """An architecture, and what it was found to be: its KL and the perplexity of its child."""

    architecture: Architecture
    kl: float
    perplexity: float
    file_bytes: int
    trial: models.TrialRow

    def made(self, trial: models.TrialRow) -> "Answer":
        """The same as its trial's child is once that was made."""
        assert trial.kl is not None
        assert trial.perplexity is not None
        return replace(self, kl=trial.kl, perplexity=trial.perplexity, trial=trial)


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

    def uniform(self, precision: str) -> Uniform:
        job = self._job
        found = self._evaluator.evaluate(as_stored(job.parent.model, precision))
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
                cells = [uniform_cell(known, uniform, limit)]
                for space in (SHAPES, BITS, BOTH):
                    found = answer(store, known, built, limit, space)
                    if found is not None and asked.made:
                        found = found.made(reality.made(found.trial))
                    if found is not None and asked.time:
                        found = replace(found, trial=reality.timed(found.trial))
                    cells.append("-" if found is None else cell(found))
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
        yield from (stored_in(known, precision) for precision in uniform_parts(known))


def answer(store: Store, known: Measured, built: Models, limit: Limit, space: str) -> Answer | None:
    """The best answer of the space within the limit, evaluated; None where there is none."""
    found = []
    for part in spaces(known, space):
        try:
            found.append((part, solve(part, (limit,))))
        except BudgetNotMetError:
            continue
    if not found:
        return None
    part, best = min(found, key=lambda pair: pair[1].score)
    architecture = part.architecture(best.options)
    trial = store.add_trial(trial_row(part, replace(best, solver=space), (limit,), None))
    assert trial.predicted_file_bytes is not None
    held = built.evaluated(architecture)
    return Answer(architecture, held.kl, perplexity(held.lm_loss), trial.predicted_file_bytes, trial)


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
    text = f"{found.kl:.4f}, {found.perplexity:.2f} ({mb(found.file_bytes)}"
    step, own = found.trial.decode_s, (found.trial.details or {}).get("parent", {}).get("decode_s")
    if step is not None and own:
        text += f", decode {step / own:.1%}"
    return text + ")"


if __name__ == "__main__":
    main()
