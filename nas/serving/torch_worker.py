"""A checkpoint's folder timed in torch, in a process of its own.

`python -m nas.serving.torch_worker FOLDER SCENARIO`; the scenario is JSON. The model is loaded as transformers loads
it, and no code of the folder runs: this package knows the classes of its own exports. Prints a line of JSON when it is
ready, and after each line of its standard input, `prefill` or `decode`, a line with the seconds of such a pass.
"""

import json
import os
import sys
from typing import IO, Any

from cost_models.scenario import Scenario


def load(folder: str, scenario: Scenario) -> Any:
    """The model in the scenario's type. Raises ValueError where the folder's weights are not those of its model."""
    from transformers import AutoModelForCausalLM

    import blocklib.model  # noqa: F401  (registers the class of exports)
    from cost_models.engines.torch_eager import torch_dtype

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch_dtype(scenario), trust_remote_code=False, output_loading_info=True
    )
    model, info = loaded
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(f"weights are missing or of another shape: {sorted(map(str, info['missing_keys']))[:3]}")
    return model


def serve_times(folder: str, scenario: Scenario, answers: IO[str]) -> None:
    """Answer the questions of standard input until it ends."""
    import torch

    from cost_models.engines.torch_eager import TorchSubject
    from cost_models.hardware import cpu_threads
    from cost_models.timing.allocator import kept_memory

    with cpu_threads(scenario), kept_memory():
        model = load(folder, scenario)
        with torch.inference_mode():
            subject = TorchSubject(model, scenario)
            print(json.dumps({"ready": type(model).__name__}), file=answers, flush=True)
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
