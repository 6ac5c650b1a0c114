"""Claim: an exported child, loaded as its card says, decodes as fast as the child that the search timed.

    python benchmarks/exported_decode.py TRIAL [--db URL] [--rounds 30] [--out exported.json]

TRIAL was built by `nas search`. Its child is exported to a temporary folder and loaded there, in a fresh process, by
the code in the model card; and here as the search has it. The two take turns, under the search's own scenario. Prints
the medians of a decode step on the cache of the prompt and half the answer, and of a whole `generate`, their ratios
round by round, and how many tokens each forward of a `generate` reads. Run it on a machine that does nothing else.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import nas.terminal.quiet  # isort: skip

import torch
from transformers import GenerationConfig

from blocklib.allocator import kept_memory
from cost_models.engines.torch_eager import TorchSubject
from cost_models.hardware import cpu_threads, synchronize
from cost_models.scenario import Scenario
from cost_models.timing.pair import Paired
from db.store import Store
from nas.files.home import child_file, home_of
from nas.stages.child_file import load_child
from nas.stages.export import export_trial

assert nas.terminal.quiet

_SAMPLE_S = 0.05
"""A step is repeated within a round until its sample is about this long."""


class Fresh:
    """The exported child in a process of its own."""

    def __init__(self, folder: Path, scenario: Scenario):
        size = (scenario.batch, scenario.prompt_tokens, scenario.generated_tokens, torch.get_num_threads())
        script = Path(__file__).with_name("exported_decode_fresh.py")
        line = [sys.executable, "-I", str(script), str(folder), *map(str, size), scenario.device]
        # As `kept_memory` keeps it here; and no code of an older export of this name is found.
        kept = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "HF_MODULES_CACHE": str(folder / ".modules")}
        self._process = subprocess.Popen(
            line, env=os.environ | kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, question: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(question, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("the exported child does not load or run; see above")
        return json.loads(answer)

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Here:
    """The child as the search timed it."""

    def __init__(self, child: Path, scenario: Scenario):
        where: dict[str, Any] = {"device": scenario.device, "dtype": getattr(torch, scenario.dtype)}
        self._model: Any = load_child(child).to(**where)
        self._model.generation_config = GenerationConfig(pad_token_id=0)
        self._scenario, self._subject = scenario, TorchSubject(self._model, scenario)
        seeded = torch.Generator().manual_seed(0)
        size = (scenario.batch, scenario.prompt_tokens + scenario.generated_tokens // 2)
        ids_BT = torch.randint(self._model.config.vocab_size, size, generator=seeded)
        self._prompt_BT = ids_BT[:, : scenario.prompt_tokens].to(self._model.device)
        self.step(3)

    def step(self, repeats: int) -> float:
        return median(self._subject.decode() for _ in range(repeats))

    def generate(self) -> float:
        synchronize(self._model.device)
        started = perf_counter()
        self._model.generate(self._prompt_BT, max_new_tokens=self._scenario.generated_tokens)
        synchronize(self._model.device)
        return perf_counter() - started


def in_turns(here: Callable[[], float], fresh: Callable[[], float], rounds: int) -> Paired:
    """A sample of each a round, the other one first every other time."""
    samples: list[tuple[float, float]] = []
    here(), fresh()  # The first of each allocates.
    for number in range(rounds):
        if number % 2:
            last = fresh()
            samples.append((here(), last))
        else:
            samples.append((here(), fresh()))
    controls, others = zip(*samples, strict=True)
    return Paired(controls, others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", type=int)
    parser.add_argument("--db", help="the database; by default NAS_DB, else nas.db in NAS_HOME")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Store.open(asked.db) as store:
        trial = store.trial(asked.trial)
        search = store.find_search(trial.search_id)
        folder = export_trial(store, trial.id, "hf", Path(scratch, "child")).folder
        scenario = Scenario(**search.scenario)
        with cpu_threads(scenario), kept_memory(), torch.inference_mode():
            child = child_file(home_of(store, search), trial.child_key)
            here, fresh = Here(child, scenario), Fresh(folder, scenario)
            reads = fresh.ask("reads")
            repeats = max(3, math.ceil(_SAMPLE_S / here.step(3)))
            step = in_turns(lambda: here.step(repeats), lambda: float(fresh.ask(f"step {repeats}")), asked.rounds)
            whole = in_turns(here.generate, lambda: float(fresh.ask("generate")), asked.rounds)
            fresh.end()
    print(f"search {search.name} ({search.id}), trial {trial.id}, {scenario}\n")
    print("| | in the search | exported | ratio | standard error |\n|---|---|---|---|---|")
    for name, paired in (("decode step", step), ("generate", whole)):
        times = f"{1e3 * paired.control:.3f} ms | {1e3 * median(paired.other_samples):.3f} ms"
        print(f"| {name} | {times} | {paired.ratio:.3f} | {paired.ratio * paired.spread:.3f} |")
    print(f"\ngenerate reads {reads[0]} tokens, then {sorted(set(reads[1:]))} in each of {len(reads) - 1} steps")
    if asked.out:
        found = {"step": vars(step) | {"ratio": step.ratio}, "generate": vars(whole) | {"ratio": whole.ratio}}
        asked.out.write_text(json.dumps(found | {"reads": reads, "trial": trial.id}, indent=1))


if __name__ == "__main__":
    main()
