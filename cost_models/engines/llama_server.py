"""llama.cpp's server in a process of its own, started, asked and stopped."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil  # type: ignore[import-untyped]

from cost_models.errors import EngineStoppedError


class LlamaServer:
    """A llama.cpp server in a process of its own, asked over HTTP.

    Raises EngineStoppedError where it does not start; so does every question after it has ended.
    """

    def __init__(self, settings: dict[str, Any]):
        self._file = settings["file"]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (it is open as long as the process may write)
        script = Path(__file__).with_name("llama_cpp_server.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(script), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        if not self.address:
            raise self._stopped()

    @property
    def process(self) -> int:
        return self._process.pid

    def ask(self, path: str, question: dict[str, Any]) -> Any:
        """POST a question as JSON to a path such as `/completion`, and read the answer."""
        request = Request(f"{self.address}{path}", json.dumps(question).encode(), {"Content-Type": "application/json"})
        try:
            with urlopen(request) as answer:
                return json.load(answer)
        except HTTPError as error:
            raise EngineStoppedError(f"llama.cpp on {self._file}: {error.read().decode(errors='replace')}") from error
        except (URLError, ConnectionError) as error:
            raise self._stopped() from error

    def used_s(self) -> float:
        """CPU seconds that it has used so far."""
        used = psutil.Process(self._process.pid).cpu_times()
        return float(used.user + used.system)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._said.close()

    def _stopped(self) -> EngineStoppedError:
        status = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        said = f": {lines[-1].strip()}" if lines else ""
        self.close()
        return EngineStoppedError(f"llama.cpp ended with status {status} on {self._file}{said}")


@contextmanager
def llama_server(**settings: Any) -> Iterator[LlamaServer]:
    """A server as `llama_cpp_server.py` takes its settings, until the end of the block."""
    server = LlamaServer(settings)
    try:
        yield server
    finally:
        server.close()
