"""A checkpoint's folder as a model to be timed in torch, eager or compiled, in a process of its own."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blocklib.checkpoint import weight_files
from cost_models.engines.process import EngineProcess
from cost_models.scenario import Scenario


class TorchFolder:
    """A folder that transformers loads, in the scenario's engine. `stays`: its process runs all the time; else only
    while it is timed."""

    def __init__(self, folder: Path, scenario: Scenario, stays: bool):
        self._folder, self._engine, self._stays = folder, scenario.engine, stays
        self._command = [sys.executable, "-m", "nas.serving.torch_worker", str(folder), json.dumps(vars(scenario))]
        self._process: EngineProcess | None = None
        self._ended_s, self._ended_bytes = 0.0, 0

    def prefill(self) -> float:
        """Seconds from an empty cache to the logits of the last token."""
        return self._seconds("prefill")

    def decode(self) -> float:
        """Seconds of one step, with as much in the cache as half-way through an answer."""
        return self._seconds("decode")

    def used_s(self) -> float:
        """CPU seconds that its processes have used so far."""
        return self._ended_s + (0.0 if self._process is None else self._process.used_s())

    def peak_bytes(self) -> int:
        """The most memory that a process of it has held at once, libraries and loading included."""
        return max(self._ended_bytes, 0 if self._process is None else self._process.peak_bytes())

    def close(self) -> None:
        if self._process is not None:
            self._ended_s, self._ended_bytes = self.used_s(), self.peak_bytes()
            self._process.close()
            self._process = None

    def _seconds(self, what: str) -> float:
        with self._running() as process:
            return float(json.loads(process.line(what))["seconds"])

    @contextmanager
    def _running(self) -> Iterator[EngineProcess]:
        if self._process is None:
            self._process = EngineProcess(self._engine, str(self._folder), self._command)
        yield self._process
        if not self._stays:
            self.close()


def weight_bytes(folder: Path) -> int:
    """Bytes of the files that hold the weights. Raises MissingCheckpointError where there are none."""
    _, files = weight_files(folder)
    return sum(file.stat().st_size for file in files)
