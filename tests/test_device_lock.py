"""Two programs never time at once on one device: real processes, a real lock."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cost_models.timing.device_lock import alone_on

_HOLD = """
import sys, time
from pathlib import Path
from cost_models.timing.device_lock import alone_on

def told(words):
    print(words, flush=True)

with alone_on(sys.argv[1], told, Path(sys.argv[2])):
    print("in", flush=True)
    sys.stdin.readline()
print("out", flush=True)
"""

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A process that wants a device, and gives it back when it reads a line."""
    running = []

    def one(device: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", _HOLD, device, str(tmp_path)]
        running.append(
            subprocess.Popen(
                command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        return running[-1]

    yield one
    for process in running:
        process.kill()
        process.communicate()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def release(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_the_second_waits_says_for_whom_and_goes_on_when_the_first_is_done(start: Start) -> None:
    first = start("cpu")
    assert line(first) == "in"
    second = start("cpu")
    who = f" (process {first.pid})" if Path("/proc/locks").is_file() else ""
    assert line(second) == f"waiting: another search{who} is timing on this machine's cpu"
    release(first)
    assert line(first) == "out"
    said = line(second)
    while said.startswith("waiting"):
        said = line(second)
    assert said == "in"


def test_a_killed_holder_leaves_the_device_free(start: Start) -> None:
    first = start("cpu")
    assert line(first) == "in"
    first.kill()
    first.wait()
    assert line(start("cpu")) == "in"


def test_who_waits_can_be_stopped(start: Start) -> None:
    first, second = start("cpu"), None
    assert line(first) == "in"
    second = start("cpu")
    assert line(second).startswith("waiting")
    second.send_signal(signal.SIGINT)
    assert second.wait(timeout=60) != 0
    release(first)
    assert line(first) == "out"


def test_devices_are_locked_one_by_one(start: Start) -> None:
    assert line(start("cpu")) == "in"
    assert line(start("mps")) == "in"


def test_a_device_has_one_lock_however_it_is_named(start: Start) -> None:
    first = start("xpu")
    assert line(first) == "in"
    assert line(start("xpu:0")).startswith(f"waiting: another search (process {first.pid})")
    assert line(start("xpu:1")) == "in"


def test_another_user_of_the_machine_may_have_it_next(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with alone_on("cpu", folder=tmp_path):
            pass
    finally:
        os.umask(before)
    (made,) = tmp_path.iterdir()
    assert made.stat().st_mode & 0o777 == 0o666


def test_it_is_free_again_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), alone_on("cpu", folder=tmp_path):
        _ = 1 / 0
    with alone_on("cpu", pytest.fail, tmp_path):
        pass
