"""A checkpoint's folder timed in torch, eager or compiled, in a process of its own.

`python -m nas.serving.torch_worker FOLDER SCENARIO`; the scenario is JSON, and names the engine. No code of the folder
runs: this package knows the classes of its own exports. `torch` runs the model as transformers loads it,
`torch_compile` this package's model of it. Prints a line of JSON when it is ready, and after each line of its standard
input, `prefill` or `decode`, a line with the seconds of such a pass.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cost_models.scenario import Scenario

if TYPE_CHECKING:
    from cost_models.timing.pair import Subject


def load(folder: str, scenario: Scenario) -> Any:
    """The model in the scenario's type. Raises ValueError where the folder's weights are not those of its model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    import blocklib.model  # noqa: F401  (registers the class of exports)
    from cost_models.engines.torch_eager import torch_dtype
    from nas.export.configuration_decilm import DeciLMConfig
    from nas.export.modeling_decilm import DeciLMForCausalLM

    AutoConfig.register(DeciLMConfig.model_type, DeciLMConfig)
    AutoModelForCausalLM.register(DeciLMConfig, DeciLMForCausalLM)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch_dtype(scenario), trust_remote_code=False, output_loading_info=True
    )
    model, info = loaded
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(f"weights are missing or of another shape: {sorted(map(str, info['missing_keys']))[:3]}")
    model.to(scenario.device)
    return model


def own_model(folder: str, scenario: Scenario) -> Any:
    """This package's model of a child's folder, or of a parent's."""
    from blocklib.block import Architecture
    from blocklib.checkpoint import read_json
    from blocklib.model import PuzzleNasConfig
    from blocklib.parent import load_parent
    from cost_models.engines.torch_compile import TorchCompile
    from cost_models.engines.torch_eager import torch_dtype

    if read_json(Path(folder, "config.json")).get("model_type") != PuzzleNasConfig.model_type:
        parent: Any = load_parent(folder, torch_dtype(scenario)).whole()
        return parent.to(scenario.device)
    model = load(folder, scenario)
    TorchCompile().check(Architecture.parse(model.config.architecture).choices(), model.config, scenario)
    return model


@contextmanager
def subject_of(folder: str, scenario: Scenario) -> "Iterator[Subject]":
    """The model as the scenario's engine times it."""
    import torch

    from cost_models.engines.torch_compile import CompiledSubject, compiled
    from cost_models.engines.torch_eager import TorchSubject

    if scenario.engine == "torch":
        model = load(folder, scenario)
        with torch.inference_mode():
            yield TorchSubject(model, scenario)
    else:
        model = own_model(folder, scenario)
        with compiled(model), torch.inference_mode():
            yield CompiledSubject(model, scenario)


def serve_times(folder: str, scenario: Scenario, answers: IO[str]) -> None:
    """Answer the questions of standard input until it ends."""
    from blocklib.allocator import kept_memory
    from cost_models.hardware import cpu_threads

    with cpu_threads(scenario), kept_memory(), subject_of(folder, scenario) as subject:
        print(json.dumps({"ready": scenario.engine}), file=answers, flush=True)
        for line in sys.stdin:
            seconds = subject.prefill() if line.strip() == "prefill" else subject.decode()
            print(json.dumps({"seconds": seconds}), file=answers, flush=True)


def main() -> None:
    import nas.terminal.quiet  # noqa: F401  (silences libraries before they load)

    folder, settings = sys.argv[1:]
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # Libraries print, and answers are alone on their line.
        serve_times(folder, Scenario(**json.loads(settings)), answers)


if __name__ == "__main__":
    main()
