"""The memory of an exact search and how it ends, in processes of their own: memory as counted, signals at any stage."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from searches import nas, started, wait_for
from test_solvers import hard, library

from solvers.exact import solver
from solvers.exact.highs import Found, IntegerProgram
from solvers.exact.highs_process import solve_in_process
from solvers.exact.minimise import minimise
from solvers.exact.program import Program
from solvers.exact.pulp_model import run
from solvers.exact.settings import Engine, Settings
from solvers.exact.shortest_path import scores_of
from solvers.problem import Option, Problem

HOUSE = Path(__file__).parents[1]
HEARD_S = 8.0
"""A second, and what a busy machine adds: what is not heard goes on for the minute it was given."""


def runs(layers: int = 100, names: int = 4, longest: int = 50, seed: int = 0) -> Problem:
    """The objective is the limited cost, and there are runs of every length: countless partial tilings, at many
    slots at once."""
    rng = random.Random(seed)
    options = []
    for first in range(layers):
        for span in range(1, min(longest, layers - first) + 1):
            for name in range(names if span == 1 else 1):
                cost = span * (rng.random() if name or span > 1 else 1.0)
                costs = {"a": cost, "b": cost * rng.uniform(0.9, 1.1)}
                options.append(Option(first, span, f"run{span}.{name}", -cost, costs))
    return Problem(layers, tuple(options), {"a": 0.5 * layers, "b": 0.5 * layers})


DRIVER = """
import sys, threading, time, traceback
import psutil
from benchmarks.solver import instance
from test_solver_limits import runs
from test_solvers import hard
from solvers.exact import solver
from solvers.exact.settings import Settings

problem = {problem}
here, me = threading.get_ident(), psutil.Process()
mine = me.cmdline()
base, peak, peak_beside = me.memory_info().rss, 0, 0
told = set()

def say(*words):
    # In one piece: two threads say something.
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

def watch():
    global peak, peak_beside
    while True:
        stack = traceback.extract_stack(sys._current_frames()[here])
        for file in {{frame.filename.rsplit("/", 1)[-1] for frame in stack}} - told:
            told.add(file)
            say("in", file)
        peak = max(peak, me.memory_info().rss)
        try:
            # A process that is being started shows this one's memory as its own until it has its program.
            begun = [one for one in me.children(recursive=True) if one.cmdline() != mine]
            peak_beside = max(peak_beside, sum(one.memory_info().rss for one in begun))
        except psutil.Error:
            pass
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
try:
    found = solver.solve(problem, Settings(gap=0.0, {asked}))
    say("status", found.status, found.gap)
except TimeoutError as error:
    say("nothing", error)
say("bytes", peak - base, peak_beside)
"""


def solving(problem: str, asked: str) -> "subprocess.Popen[str]":
    """A process that solves, and says in which file of the solver it is when it first comes there."""
    paths = os.pathsep.join([str(HOUSE), str(HOUSE / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(problem=problem, asked=asked)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def ended(running: "subprocess.Popen[str]", sent: signal.Signals) -> int:
    """The exit status after a signal to the process, not to its group. Nothing of it is left."""
    family = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(sent)
    try:
        status = running.wait(HEARD_S)
    finally:
        running.kill()
        running.communicate()
    _, alive = psutil.wait_procs(family, timeout=HEARD_S)
    assert not alive, f"still running: {[process.cmdline() for process in alive]}"
    return status


@pytest.mark.parametrize("memory", [100e6, 300e6])
@pytest.mark.parametrize("engine", ["highs", "cbc"])
def test_a_search_holds_no_more_than_it_may(engine: Engine, memory: float) -> None:
    """Without a count of what lies ahead it came to gigabytes in this time, and went on."""
    running = solving("runs()", f"memory_bytes={memory}, time_limit_s=4, engine={engine!r}")
    said, _ = running.communicate(timeout=300)
    words = dict(line.split(" ", 1) for line in said.splitlines() if line.startswith(("status", "bytes")))
    status, gap = words["status"].split()
    own, beside = map(float, words["bytes"].split())
    assert own <= memory, said
    # A Python with HiGHS, or CBC, takes some 60 MB before it begins.
    assert beside <= memory + 60e6, said
    assert (status, float(gap) > 1e-6) in {("feasible", True), ("optimal", False)}


@pytest.mark.parametrize(
    ("file", "problem", "asked"),
    [
        ("labels.py", "runs()", "time_limit_s=60"),
        ("meet_in_the_middle.py", "instance('additive', 126, 400, 4, 0)", "time_limit_s=60"),
        ("highs_process.py", "hard()", "time_limit_s=60, memory_bytes=3e8"),
        ("subprocess.py", "hard()", "time_limit_s=60, memory_bytes=3e8, engine='cbc'"),
    ],
)  # fmt: skip
def test_ctrl_c_is_heard_at_every_stage(file: str, problem: str, asked: str) -> None:
    running = solving(problem, asked)
    wait_for(running, f"in {file}")
    time.sleep(1.0)  # Into the work.
    assert ended(running, signal.SIGINT) == -signal.SIGINT


def table(folder: Path, problem: Problem) -> Path:
    """Slots and options as a file."""
    options = [
        {"first": one.first, "span": one.span, "name": one.name, "score": one.score, "costs": dict(one.costs)}
        for one in problem.options
    ]
    path = folder / "table.json"
    path.write_text(json.dumps({"slots": problem.slots, "options": options, "budget": dict(problem.maximums)}))
    return path


@pytest.mark.parametrize(
    ("sent", "engine"),
    [(signal.SIGINT, None), (signal.SIGTERM, None), (signal.SIGINT, "highs"), (signal.SIGTERM, "cbc")],
)
def test_the_command_ends_as_it_is_told(tmp_path: Path, sent: signal.Signals, engine: str | None) -> None:
    """In its own search after its first word, or as soon as a MIP solver works beside it."""
    asked = ["--gap", "0", *([] if engine is None else ["--engine", engine, "--memory", "300MB"])]
    path = table(tmp_path, runs() if engine is None else hard())
    running = started(tmp_path / "home", "solve", "--table", path, *asked)
    if engine is None:
        wait_for(running, "solving: ")
    else:
        while not psutil.Process(running.pid).children():
            assert running.poll() is None, running.communicate()[0]
            time.sleep(0.05)
        time.sleep(1.0)
    assert ended(running, sent) == 128 + sent


def test_the_command_takes_memory_and_refuses_too_little(tmp_path: Path) -> None:
    path = table(tmp_path, library(layers=6, names=4, seed=8))
    assert nas(tmp_path, "solve", "--table", path, "--memory", "1GB", "--json").returncode == 0
    done = nas(tmp_path, "solve", "--table", path, "--memory", "1MB")
    assert done.returncode == 1
    assert "1 MB of memory is too little for the exact solver; give at least 100 MB" in done.stderr
    assert "no unit" in nas(tmp_path, "solve", "--table", path, "--memory", "2").stderr


@pytest.mark.parametrize("engine", ["highs", "cbc"])
def test_a_program_too_large_for_the_memory_is_not_modelled(engine: Engine) -> None:
    problem = library(layers=20, names=6, seed=7)
    program = Program.of(problem, scores_of(problem), problem.limits)
    assert run(program, Settings(1e-9, engine=engine, memory_bytes=1e5)).outcome == "out of memory"


def test_with_less_memory_the_answer_is_the_same() -> None:
    problem = library(layers=60, names=10, seed=3)
    program = Program.of(problem, scores_of(problem), problem.limits)
    whole, little = (minimise(program, Settings(1e-9, 60, memory_bytes=most)) for most in (2e9, 1e8))
    assert program.weight(little.chosen) == pytest.approx(program.weight(whole.chosen), rel=1e-8)


def rows_of_a_puzzle(columns: int = 4_000, seed: int = 0) -> IntegerProgram:
    """Sums that HiGHS is long over."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(1, 100, (12, columns))
    return IntegerProgram(
        -values.sum(0) - rng.uniform(0, 1, columns),
        np.full(12, -np.inf),
        0.3 * values.sum(1),
        np.arange(0, 12 * columns + 1, columns, dtype=np.int32),
        np.tile(np.arange(columns, dtype=np.int32), 12),
        values.ravel(),
    )


def test_a_mip_solver_that_grows_too_large_is_stopped_with_what_it_has() -> None:
    found = solve_in_process(rows_of_a_puzzle(), 0.0, time.monotonic() + 60, memory_bytes=8e6)
    assert found.status == "out of memory"
    assert found.bound <= (np.inf if found.values is None else float(rows_of_a_puzzle().cost @ found.values) + 1e-6)


def test_a_mip_solver_in_a_process_of_its_own_answers_as_it_does_here() -> None:
    rows = rows_of_a_puzzle(columns=2_600)  # More numbers than are tried here first.
    told: list[tuple[float, float]] = []
    found = solve_in_process(rows, 1e-2, time.monotonic() + 120, 1e9, lambda best, bound: told.append((best, bound)))
    assert isinstance(found, Found)
    assert found.status == "optimal"
    assert found.values is not None
    assert told
    total = float(rows.cost @ np.round(found.values))
    assert found.bound <= total <= found.bound * (1 - 1e-2)
    sums = rows.values.reshape(12, -1) @ np.round(found.values)
    assert (sums <= rows.high * (1 + 1e-9)).all()


def test_without_memory_for_any_answer_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of even numbers that are to be odd: nothing is found, however long it is looked for."""
    rng = random.Random(0)
    options = [
        Option(slot, 1, f"o{name}", rng.random(), {"a": 2.0 * rng.randrange(10**6)})
        for slot in range(40)
        for name in range(10)
    ]
    odd = 2.0 * 40 * 500_000 + 1
    monkeypatch.setattr("solvers.exact.minimise._LAST", 0)
    with pytest.raises(TimeoutError, match=r"^with 0.0001 GB of memory no solution was found, nor was it proven"):
        solver.solve(Problem(40, tuple(options), {"a": odd}, {"a": odd}), Settings(memory_bytes=1e5))
