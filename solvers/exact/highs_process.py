"""HiGHS in a process of its own, which can be stopped at any moment and has a limit of memory.

HiGHS runs for seconds without a callback, and Python handles no signal meanwhile. A process can be killed. It takes a
part of a second to start, so small programs are first tried in this process.
"""

import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import psutil  # type: ignore[import-untyped]

from solvers.errors import SolverCrashError
from solvers.exact.highs import Found, IntegerProgram, Tell, solve_program

_MOMENT_S = 0.4
_SMALL = 30_000
"""The most numbers in the rows of a program that is tried in this process first. For those HiGHS checks the clock often
enough."""
_SERVE = "from solvers.exact.highs_process import serve; serve()"


def solve_in_process(
    rows: IntegerProgram, gap: float, deadline: float, memory_bytes: float, tell: Tell | None = None
) -> Found:
    """The minimum of an integer program to a relative gap, or the best found by the deadline (`time.monotonic`) and
    within the memory. Ctrl-C ends it at once.

    Raises SolverCrashError where a signal ends the process before it has begun, RuntimeError where it fails by itself.
    """
    left_s = deadline - time.monotonic()
    if len(rows.values) <= _SMALL:
        found = solve_program(rows, gap, min(left_s, _MOMENT_S))
        if found.status != "timed out" or left_s <= _MOMENT_S:
            return found
    elif left_s <= _MOMENT_S:
        return Found("timed out")
    with tempfile.TemporaryFile() as errors:
        process = _started(errors)
        try:
            return _asked(process, (rows, gap, deadline, memory_bytes), tell, errors)
        finally:
            process.kill()
            process.communicate()


def _started(errors: IO[bytes]) -> "subprocess.Popen[bytes]":
    """A Python command that finds this package in any place, and imports nothing from the current folder."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def _asked(process: "subprocess.Popen[bytes]", asked: object, tell: Tell | None, errors: IO[bytes]) -> Found:
    assert process.stdin is not None
    assert process.stdout is not None
    has_begun = False
    try:
        pickle.dump(asked, process.stdin)
        process.stdin.flush()
        while True:
            said: Any = pickle.load(process.stdout)
            has_begun = True
            if isinstance(said, Found):
                return said
            if said is not None and tell is not None:
                tell(*said)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        process.wait()
        errors.seek(0)
        written = errors.read().decode(errors="replace").strip()
        if has_begun and (process.returncode < 0 or "MemoryError" in "".join(written.splitlines()[-1:])):
            # An allocation failed, or the system's out-of-memory killer ended the process.
            return Found("out of memory")
        if process.returncode < 0:
            raise SolverCrashError(f"HiGHS's process was ended by signal {-process.returncode}; try again") from None
        raise RuntimeError(f"HiGHS's process ended with {process.returncode}:\n{written}") from None


def serve() -> None:
    """The process: it reads one program from standard input, and writes progress and the answer to standard output."""
    for sent in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sent, signal.SIG_IGN)  # A shell sends them to all processes; the parent ends this one.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Output of HiGHS itself must not mix with the answer.

    def say(what: object) -> None:
        pickle.dump(what, out)
        out.flush()

    rows, gap, deadline, memory_bytes = pickle.load(sys.stdin.buffer)
    most, hard = int(psutil.Process().memory_info().vms + memory_bytes), resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    say(None)
    say(solve_program(rows, gap, deadline - time.monotonic(), lambda *known: say(known), memory_bytes))
