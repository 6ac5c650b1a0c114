"""How fast healing should learn: one child of a finished search, healed at several rates for several numbers of tokens.

    python benchmarks/healing.py JOB [--home FOLDER] [--rates 1e-3 5e-4 2e-4 1e-4] [--tokens 8192 49152]
                                 [--out results.json]

Takes the best trial that `nas search JOB` built for the job's budget, assembles its child from the library anew, and
heals a copy of it at every rate and number of tokens, all else as the job has it, from the same seed. Writes nothing to
the home. Prints a Markdown table: KL to the parent and LM loss on the job's held-out tokens, before and after.
"""

import argparse
import json
import sys
import tempfile
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import nas.terminal.quiet  # isort: skip

from blocklib.assemble import assemble
from blocklib.block import Architecture
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent
from db import models
from db.store import Store
from nas.job import config
from nas.scoring.fidelity import Fidelity
from nas.stages.child import healing_of
from nas.stages.devices import device_of, tensor
from nas.stages.evaluate import evaluate
from nas.stages.heal import heal
from nas.stages.heal_settings import Healing
from nas.stages.library import choice_weights
from nas.stages.prepare import Job, prepare

assert nas.terminal.quiet


@dataclass(frozen=True)
class Result:
    """One healing of the child; the first two numbers are its own, before any."""

    kl_before_heal: float
    loss_before_heal: float
    tokens: int
    learning_rate: float
    kl: float
    loss: float


def best_trial(job: Job, store: Store) -> models.TrialRow:
    """The closest to the parent of those built for the job's budget. Ends where none was."""
    budget = {asked.metric: asked.text for asked in job.request.budget}
    built = [trial for trial in store.trials(job.id, where="kl is not None", sort="kl") if trial.budget == budget]
    if not built:
        raise SystemExit(f"no child of search {job.id} was built for this budget; run `nas search` on the job first")
    return built[0]


def child_of(job: Job, parent: Parent, trial: models.TrialRow) -> PuzzleNasForCausalLM:
    """As the search assembled it, not healed."""
    architecture = Architecture.parse(trial.architecture)
    keys = job.built_keys(architecture.choices())
    return assemble(parent, architecture, lambda choice: choice_weights(parent, job.library, choice, keys))


def healed(job: Job, parent: Parent, child: PuzzleNasForCausalLM, settings: Healing) -> Fidelity:
    """A copy of `child` healed so, beside the parent on the held-out tokens."""
    device = device_of(job)
    copy, text_BT = deepcopy(child), tensor(job.tokens.distillation, device)
    with tempfile.TemporaryDirectory() as checkpoints:
        for event in heal(parent.model, copy, text_BT, settings, Path(checkpoints)):
            done = f"{event.done_tokens} of {event.total_tokens} tokens at {settings.learning_rate:g}"
            print(f"\r{done:60}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return evaluate(parent.model, copy, tensor(job.tokens.evaluation, device))


def table(results: list[Result]) -> str:
    lines = [
        "| tokens | learning rate | KL before | KL healed | loss before | loss healed |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        numbers = (r.kl_before_heal, r.kl, r.loss_before_heal, r.loss)
        lines.append(f"| {r.tokens:,} | {r.learning_rate:g} | {' | '.join(f'{value:.4f}' for value in numbers)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--home", type=Path, help="where the finished search's library and database live; as the job's")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 5e-4, 2e-4, 1e-4])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 49152])
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    request = config.load(arguments.job)
    if arguments.home:
        request = request.model_copy(update={"home": arguments.home.resolve()})
    job = prepare(request)
    settings = healing_of(job)
    if settings is None:
        parser.error("the job asks for no healing; give it a `heal`")
    with Store.open(str(request.home / "nas.db")) as store:
        trial = best_trial(job, store)
    parent = job.parent.on(device_of(job))
    child = child_of(job, parent, trial)
    before = evaluate(parent.model, child, tensor(job.tokens.evaluation, device_of(job)))
    print(f"search {request.name} ({job.id}), trial {trial.id}: {trial.architecture}\n", flush=True)
    results = []
    for tokens in arguments.tokens:
        for rate in arguments.rates:
            after = healed(job, parent, child, replace(settings, tokens=tokens, learning_rate=rate))
            results.append(Result(before.kl, before.lm_loss, tokens, rate, after.kl, after.lm_loss))
    print(table(results))
    if arguments.out:
        arguments.out.write_text(json.dumps({"trial": trial.id, "results": [asdict(r) for r in results]}, indent=1))


if __name__ == "__main__":
    main()
