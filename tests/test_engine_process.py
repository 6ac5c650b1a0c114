"""An engine's process, as any program that answers line by line. Nothing here says how fast anything is."""

import sys

import pytest

from cost_models.engines.process import EngineProcess
from cost_models.errors import EngineStoppedError

SILENT = """
import os, sys, time
print("ready", flush=True)
os.close(1)
time.sleep(600)
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
