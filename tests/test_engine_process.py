"""An engine's process, as any program that answers line by line. Nothing here says how fast anything is."""

import os
import signal
import sys
import time

import psutil  # type: ignore[import-untyped]
import pytest

from cost_models.engines.process import EngineProcess
from cost_models.errors import EngineStoppedError

SILENT = """
import os, sys, time
print("ready", flush=True)
os.close(1)
time.sleep(600)
"""

WITH_A_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.read()
"""


def process(code: str) -> EngineProcess:
    return EngineProcess("an engine", "a model", [sys.executable, "-I", "-c", code])


def test_a_blank_line_is_no_answer() -> None:
    echo = process("import sys; print('ready', flush=True); [print('\\n', line, flush=True) for line in sys.stdin]")
    assert echo.first == "ready"
    assert [echo.line("one"), echo.line("two")] == ["one", "two"]
    echo.close()


def test_a_process_that_no_longer_answers_is_stopped_and_said_to_be() -> None:
    silent = process(SILENT)
    with pytest.raises(EngineStoppedError, match="an engine does not answer any more, and was stopped, on a model"):
        silent.line("a question")


def test_what_it_started_ends_with_it_and_after_it() -> None:
    whole, headless = process(WITH_A_CHILD), process(WITH_A_CHILD)
    whole.close()
    assert has_ended(int(whole.first))
    os.kill(headless.process, signal.SIGKILL)
    with pytest.raises(EngineStoppedError, match="ended with status -9"):
        headless.line("a question")
    assert has_ended(int(headless.first))


def test_it_closes_where_what_it_started_has_ended_already() -> None:
    left = process(WITH_A_CHILD)
    os.kill(int(left.first), signal.SIGKILL)
    assert left.used_s() >= 0
    left.close()
    left.close()
    assert has_ended(left.process)


def test_its_environment_is_this_processes_and_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_OURS", "ours")
    code = "import os, sys; print(os.environ['NAS_OURS'], os.environ['NAS_MORE'], flush=True); sys.stdin.read()"
    told = EngineProcess("an engine", "a model", [sys.executable, "-I", "-c", code], {"NAS_MORE": "more"})
    assert told.first == "ours more"
    told.close()


def has_ended(number: int) -> bool:
    """Whether a process ends within some seconds; one that nobody has waited for has ended too."""
    for _ in range(100):
        try:
            if psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False
