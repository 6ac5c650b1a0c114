"""An engine on one model, in a process of its own: started, read line by line, stopped."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import ClassVar

import psutil  # type: ignore[import-untyped]

from cost_models.errors import EngineStoppedError
from cost_models.hardware import peak_resident_bytes

_END_S = 5.0
"""How long a process that no longer answers may take to end by itself."""


class EngineProcess:
    """A process whose first line says that it is ready, and that ends with its standard input. The processes that it
    starts end with it.

    `first` is that line; `environment` is added to this process's. Raises EngineStoppedError, with the end of its
    standard error, where the process does not start; so does the question at which it has ended.
    """

    shown_lines: ClassVar[int] = 1
    """How many of the last lines of its standard error say why it ended."""

    def __init__(self, engine: str, model: str, command: Sequence[str], environment: Mapping[str, str] | None = None):
        self._engine, self._model = engine, model
        self._used_s, self._peak_bytes = 0.0, 0
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (it is open as long as the process may write)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True, process_group=0,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        try:
            self.first = self.line()
        except BaseException:  # Ctrl-C does not reach it, since its group is its own.
            self.close()
            raise

    @property
    def process(self) -> int:
        return self._process.pid

    def line(self, question: str | None = None) -> str:
        """Its next line that is not blank, after a line to its standard input if there is a question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if question is not None:
            try:
                self._process.stdin.write(f"{question}\n")
                self._process.stdin.flush()
            except OSError as error:
                raise self.stopped() from error
        while line := self._process.stdout.readline():
            if found := line.strip():
                return found
        raise self.stopped()

    def used_s(self) -> float:
        """CPU seconds that it and the processes that it started have used so far; once it has ended, those until it was
        last asked."""
        if self._process.poll() is None:
            root = psutil.Process(self._process.pid)
            self._used_s = sum(map(_cpu_s, (root, *root.children(recursive=True))))
        return self._used_s

    def peak_bytes(self) -> int:
        """The most memory that it has held at once; once it has ended, until it was last asked."""
        if self._process.poll() is None:
            self._peak_bytes = max(self._peak_bytes, peak_resident_bytes(self._process.pid))
        return self._peak_bytes

    def close(self) -> None:
        """End it, and what it started, whichever of them still run."""
        if self._said.closed:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(ProcessLookupError, PermissionError):  # Nothing of it runs; macOS says so by the second.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()
        self._said.close()
        with suppress(BrokenPipeError):  # A question was left that nobody reads.
            self._process.stdin.close()

    def stopped(self) -> EngineStoppedError:
        """The error of a process that has ended or no longer answers; it is closed."""
        try:
            how = f"ended with status {self._process.wait(_END_S)}"
        except subprocess.TimeoutExpired:
            how = "does not answer any more, and was stopped,"
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        said = f": {' / '.join(lines[-self.shown_lines :])}" if lines else ""
        self.close()
        return EngineStoppedError(f"{self._engine} {how} on {self._model}{said}")


def _cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process alone; none where it has just ended."""
    try:
        used = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(used.user + used.system)
