"""How a command ends when it is asked to, by whatever signal, at whatever moment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import SHARED
from searches import assert_files_are_whole, command, environment, job, nas, rows, started, the_error, wait_for

_LAST_WORD = "interrupted; finished work is kept, and the same command resumes"
_STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
_SLOW_TO_END = """
import signal, time
from nas.terminal.exits import clear_errors, end_on_signals
end_on_signals()
with clear_errors():
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        time.sleep(1)
        print("tidied", flush=True)
"""

_SLOW_TO_EXIT = """
import atexit, time
from nas.terminal.exits import clear_errors, end_on_signals
atexit.register(time.sleep, 60)
end_on_signals()
with clear_errors():
    raise OSError("wrong")
"""

_ASKED_IN_A_FORK = """
import _thread, functools, logging, os, signal, subprocess, time
from nas.terminal.exits import clear_errors, end_on_signals
end_on_signals()
os.register_at_fork(before=functools.partial(_thread.interrupt_main, signal.SIGNUM))
with clear_errors():
    subprocess.run(["true"], preexec_fn=os.getpid)
    time.sleep(60)
    print("it went on")
"""


def _asked(running: "subprocess.Popen[str]", *signals: signal.Signals, group: bool = False) -> str:
    """Send signals, one right after the other; the rest of its output once nothing of it runs any more."""
    family = psutil.Process(running.pid).children(recursive=True)
    for sent in signals:
        (os.killpg if group else os.kill)(running.pid, sent)
    rest, _ = running.communicate(timeout=120)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, f"still running: {[process.cmdline() for process in alive]}"
    return rest


def _ends(script: str) -> tuple[int, str]:
    """The exit status of a script, and all it wrote to stderr."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


def _ends_like_ctrl_c(running: "subprocess.Popen[str]", said: str, home: Path) -> None:
    assert said.splitlines()[-1:] == [_LAST_WORD]
    for dump in ("Traceback", "***", "SIGTERM", "Stack"):
        assert dump not in said
    assert running.returncode == 143
    assert [search["status"] for search in rows(home, "search")] == ["interrupted"]
    assert rows(home, "failure") == []
    assert_files_are_whole(home)


@pytest.mark.parametrize(("sent", "status"), _STOPS)
def test_a_signal_after_the_last_word_ends_it_silently(sent: signal.Signals, status: int) -> None:
    """Libraries that are unloaded at exit would print a traceback of it."""
    line: list[Any] = [sys.executable, "-c", _SLOW_TO_EXIT]
    running = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(running, "error: wrong")
    assert _asked(running, sent) == ""
    assert running.returncode == status


@pytest.mark.parametrize(("sent", "status"), _STOPS)
def test_a_signal_in_the_middle_of_a_fork_is_heard(sent: signal.Signals, status: int) -> None:
    script = _ASKED_IN_A_FORK.replace("SIGNUM", sent.name)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("", f"{_LAST_WORD}\n")
    assert done.returncode == status


@pytest.mark.parametrize(("sent", "status"), _STOPS)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_signals_in_a_row_are_one(sent: signal.Signals, status: int, times: int) -> None:
    """A process that has begun to end is not disturbed."""
    line: list[Any] = [sys.executable, "-c", _SLOW_TO_END]
    running = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(running, "begun")
    assert _asked(running, *[sent] * times) == f"tidied\n{_LAST_WORD}\n"
    assert running.returncode == status


def test_a_later_signal_is_heard_again() -> None:
    line: list[Any] = [sys.executable, "-c", _SLOW_TO_END.replace("time.sleep(1)", "time.sleep(60)")]
    running = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(running, "begun")
    running.send_signal(signal.SIGTERM)
    time.sleep(6)
    running.send_signal(signal.SIGTERM)
    assert running.communicate(timeout=30)[0] == f"{_LAST_WORD}\n"
    assert running.returncode == 143


def test_a_signal_waits_for_an_import(tmp_path: Path) -> None:
    """Some libraries swallow what is raised while they load."""
    (tmp_path / "greedy.py").write_text(
        "import time\nprint('begun', flush=True)\ntry:\n    time.sleep(2)\nexcept BaseException:\n    pass\n"
    )
    line: list[Any] = [sys.executable, "-c", _SLOW_TO_END.replace('print("begun", flush=True)', "import greedy")]
    known = os.environ | {"PYTHONPATH": str(tmp_path)}
    running = subprocess.Popen(line, env=known, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(running, "begun")
    assert _asked(running, signal.SIGTERM) == f"tidied\n{_LAST_WORD}\n"
    assert running.returncode == 143


_LOST = """
import os, signal, sys, threading, time, weakref
from nas.terminal.exits import clear_errors, end_on_signals

def ask(*_):
    signal.raise_signal(signal.SIGINT)

class Dropped:
    def __del__(self):
        ask()

def in_del():
    Dropped()

def in_a_callback_of_weakref():
    class Known: pass
    known = Known()
    kept = weakref.ref(known, ask)
    del known

def around_a_fork():
    os.register_at_fork(before=ask)
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)

def in_logging():
    import logging
    class Asks(logging.Handler):
        emit = ask
    logging.getLogger().addHandler(Asks())
    logging.error("a line")

def caught():
    try:
        ask()
    except BaseException:
        pass

end_on_signals()
with clear_errors():
    try:
        globals()[sys.argv[1]]()
        time.sleep(60)
        print("went on")
    finally:
        time.sleep(0.5)
        print("tidied", flush=True)
"""


@pytest.mark.parametrize("where", ["in_del", "in_a_callback_of_weakref", "around_a_fork", "in_logging", "caught"])
def test_a_signal_that_is_swallowed_is_raised_again(where: str) -> None:
    """And it does not disturb what tidies up."""
    line = [sys.executable, "-c", _LOST, where]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "tidied\n", f"{_LAST_WORD}\n")


_REPLACED = """
import signal
from nas.terminal.exits import clear_errors, end_on_signals
end_on_signals()
with clear_errors():
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        raise RuntimeError("something went wrong") from None
"""


def test_a_signal_that_a_library_makes_an_error_of_is_one() -> None:
    assert _ends(_REPLACED) == (143, f"{_LAST_WORD}\n")


_ANSWERED = """
import signal, time
from nas.terminal.exits import clear_errors, end_on_signals
from nas.terminal.signals import SIGNALS
end_on_signals()
with clear_errors():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        SIGNALS.answer()
    signal.raise_signal(signal.SIGINT)  # Pressed twice: the same request.
    time.sleep(1)
    assert SIGNALS.end() == 130
"""


def test_a_signal_that_is_answered_is_not_raised_again() -> None:
    assert _ends(_ANSWERED) == (0, "")


_OFF_THE_MAIN_THREAD = """
from concurrent.futures import ThreadPoolExecutor
from nas.terminal.signals import SIGNALS

def work():
    with SIGNALS.kept():
        return "worked"

print(ThreadPoolExecutor().submit(work).result())
"""


def test_a_thread_of_somebody_elses_program_may_work() -> None:
    """No thread but the main one may set what a signal does."""
    assert _ends(_OFF_THE_MAIN_THREAD) == (0, "")


_TAKEN_OVER = """
import signal, sys, time
from nas.terminal.exits import clear_errors, end_on_signals
from nas.terminal.signals import SIGNALS
end_on_signals()

class Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

with clear_errors():
    with SIGNALS.kept():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        time.sleep(1)
        Dropped()
        time.sleep(1)
        print("started", file=sys.stderr)
    time.sleep(60)
"""


def test_a_signal_waits_for_a_start_and_is_kept_where_a_library_answers_it() -> None:
    """Ray, while it starts: its own answer is swallowed as well, and half started it would crash."""
    assert _ends(_TAKEN_OVER) == (143, f"started\n{_LAST_WORD}\n")


_LOADS = """
from rich.console import Console
from nas.terminal.exits import clear_errors, end_on_signals
from nas.terminal.progress import loading
end_on_signals()
with clear_errors():
    try:
        with loading(Console(), "search tiny"):
            import long
    finally:
        print("not at once", flush=True)
"""


@pytest.mark.parametrize(("sent", "status"), _STOPS)
def test_a_signal_while_libraries_load_ends_it_at_once(tmp_path: Path, sent: signal.Signals, status: int) -> None:
    (tmp_path / "long.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    known = os.environ | {"PYTHONPATH": str(tmp_path)}
    line: list[Any] = [sys.executable, "-c", _LOADS]
    running = subprocess.Popen(line, env=known, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(running, "begun")
    said = _asked(running, sent, sent).splitlines()
    assert [words for words in said if not words.startswith("search tiny: loading PyTorch")] == [_LAST_WORD]
    assert running.returncode == status


_WRITES = """
import signal, sys
from sqlalchemy import Engine, event
from db.models import StageRow, now
from db.store import Store
from nas.terminal.exits import clear_errors, end_on_signals
end_on_signals()
with clear_errors(), Store.open(sys.argv[1]) as store:
    search = store.searches()[0].id
    event.listen(Engine, "before_cursor_execute", lambda *_: signal.raise_signal(signal.SIGTERM), once=True)
    try:
        store.add_stage(StageRow(search_id=search, name="solve", started_at=now(), seconds=1.0, work_done=77))
        while True:
            pass
    except KeyboardInterrupt:
        store.set_search_status(search, "interrupted")
        raise
"""


def test_a_signal_waits_for_a_write(copy: Path) -> None:
    """A transaction left open would keep the database locked."""
    line: list[Any] = [sys.executable, "-c", _WRITES, str(copy / "home/nas.db")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (143, f"{_LAST_WORD}\n")
    assert [search["status"] for search in rows(copy / "home", "search")] == ["interrupted"]
    assert 77 in [stage["work_done"] for stage in rows(copy / "home", "stage")]


def test_sigterm_while_subblocks_are_distilled(timed: Path) -> None:
    running = started(timed / "home", "search", timed / "job.yaml")
    wait_for(running, "distil blocks: ")
    _ends_like_ctrl_c(running, _asked(running, signal.SIGTERM, signal.SIGTERM), timed / "home")


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True], ids=["itself", "all of it"])
@pytest.mark.parametrize("words", ["search tiny (", "score options: ", "heal child: "])
def test_sigterm_at_other_stages(timed: Path, words: str, group: bool) -> None:
    """The first is when Ray starts. `timeout` and batch systems signal Ray's own processes too."""
    home = timed / "home"
    running = started(home, "search", timed / "job.yaml")
    wait_for(running, words)
    _ends_like_ctrl_c(running, _asked(running, signal.SIGTERM, group=group), home)
    assert nas(home, "search", timed / "job.yaml").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [1.0, 2.0, 4.0, 6.0])
def test_sigterm_while_ray_starts(timed: Path, after_s: float) -> None:
    running = started(timed / "home", "search", timed / "job.yaml")
    wait_for(running, "search tiny (")
    time.sleep(after_s)
    _ends_like_ctrl_c(running, _asked(running, signal.SIGTERM), timed / "home")


@pytest.mark.slow
def test_sigterm_while_the_export_is_loaded_again(timed: Path) -> None:
    """In a process of its own, which ends as well."""
    running = started(timed / "home", "search", timed / "job.yaml")
    wait_for(running, "heal child: ")
    deadline = time.monotonic() + 240
    while not any("reload.py" in " ".join(child.cmdline()) for child in psutil.Process(running.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    _ends_like_ctrl_c(running, _asked(running, signal.SIGTERM), timed / "home")
    exported = [path for path in (timed / "home/exports").rglob("*") if path.is_file()]
    assert exported == []


def test_sigterm_before_anything_is_found(tmp_path: Path) -> None:
    """While torch and others are imported."""
    for after_s in (2.0, 2.5, 3.0):
        running = started(tmp_path / "home", "search", job(tmp_path))
        time.sleep(after_s)
        assert _asked(running, signal.SIGTERM).splitlines()[-1:] == [_LAST_WORD]
        assert running.returncode == 143


def test_a_stale_ray_address_is_told_in_a_line(tmp_path: Path) -> None:
    known = environment(tmp_path / "home") | {"RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(
        command("search", _case("ray_address_stale")), env=known, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "no cluster answers at 127.0.0.1:1 (from $RAY_ADDRESS)" in the_error(done.stderr)


def _case(name: str) -> Path:
    file = SHARED / "cases" / name / "job.yaml"
    if not file.is_file():
        pytest.skip("no cases beside the repository")
    return file


@pytest.mark.slow
def test_a_search_under_a_long_tmpdir(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder = folder.with_name(folder.name + (103 - len(str(folder))) * "x")
    folder.mkdir()
    known = environment(tmp_path / "home") | {"TMPDIR": str(folder)}
    done = subprocess.run(
        command("search", _case("tmpdir_too_long")), env=known, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
