"""Searches run as a user runs them: a job file, the command line in a process of its own, a home folder, its database.

The job is tiny, and everything in it real: a trained parent, Python sources as text, a Ray of the search's own.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import EMBEDDED, STORIES
from filelock import FileLock
from safetensors.torch import load_file

from nas.cli.main import main
from nas.cluster.tasks import Cluster

_TEXT = Path(sysconfig.get_paths()["stdlib"], "asyncio/*.py")
_JOB: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "train": [str(_TEXT)],
        "document_separator": "\n\n\n",
        "sequence_length": 64,
        "calibration_tokens": 1024,
        "distillation_tokens": 4096,
        "score_tokens": 1024,
        "evaluation_tokens": 1024,
    },
    "space": {"attention": ["kv50%", "skip"], "ffn": ["50%", "skip"], "fuse": None, "drop_blocks": False},
    "scenario": {"batch": 2, "prompt_tokens": 32, "generated_tokens": 4, "threads": 1},
    # Parameters are counted, not timed: the same architecture is the answer on every machine.
    "budget": {"parameters": "75%"},
    "measure": {"tolerance": 0.2, "time_limit": "1 s"},
    "heal": {"tokens": 2048},
}
# The columns of a trial that a clock has a part in, and those of any row that say which run wrote it, when and where.
_TIMED = {"latency_s", "latency_ratio", "latency_spread", "ttft_s", "ttft_spread", "decode_s", "decode_spread",
          "throughput", "energy_j", "energy_ratio", "energy_spread", "contention"}  # fmt: skip
_OF_THE_RUN = {"id", "created_at", "seconds", "child_path", "details"}

Here = Callable[..., "subprocess.CompletedProcess[str]"]


def parent_folder() -> Path:
    """The parent that ships with the package; without it, one that lies beside the repository."""
    for folder in (EMBEDDED, STORIES):
        if (folder / "model.safetensors").is_file():
            return folder.resolve()
    pytest.skip("no trained parent: neither nas/embedded/parent nor stories260K is there")


def job(folder: Path, **changed: Any) -> Path:
    """A job file in `folder`; whole sections are replaced, but of `data` only the keys named."""
    data = _JOB["data"] | changed.pop("data", {})
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"parent": str(parent_folder())} | _JOB | {"data": data} | changed))
    return path


def environment(home: Path) -> dict[str, str]:
    """The environment of `nas`: a home of its own, no cluster and no hub, and lines that are not broken."""
    others = {name: value for name, value in os.environ.items() if name not in ("NAS_DB", "RAY_ADDRESS")}
    return others | {"NAS_HOME": str(home), "HF_HUB_OFFLINE": "1", "COLUMNS": "400"}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "nas.cli.main", *map(str, arguments)]


def nas(home: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run it to its end."""
    return subprocess.run(command(*arguments), env=environment(home), capture_output=True, text=True, timeout=900)


def started(home: Path, *arguments: str | Path) -> "subprocess.Popen[str]":
    """Start it, as a shell does, in a process group of its own."""
    return subprocess.Popen(
        command(*arguments),
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def wait_for(running: "subprocess.Popen[str]", words: str) -> str:
    """Read its output up to the line that holds `words`; returns that far. Fails where it ends without."""
    assert running.stdout is not None
    read = []
    for line in running.stdout:
        read.append(line)
        if words in line:
            return "".join(read)
    pytest.fail(f"it ended without {words!r}:\n{''.join(read)}")


def stop_group(running: "subprocess.Popen[str]", sent: signal.Signals) -> str:
    """Send the whole process group a signal; returns the rest of its output once nothing of it runs any more."""
    family = psutil.Process(running.pid).children(recursive=True)
    os.killpg(running.pid, sent)
    rest, _ = running.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, f"still running: {[process.cmdline() for process in alive]}"
    return rest


def rows(home: Path, table: str) -> list[dict[str, Any]]:
    """A table of a home's database, in the order of its first columns."""
    connection = sqlite3.connect(f"file:{home}/nas.db?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]
    finally:
        connection.close()


def outcome(home: Path) -> dict[str, list[dict[str, Any]]]:
    """All that two runs of one job must agree on bit for bit, whatever happened to them on the way.

    Seconds are measured, so they differ; a run that finds its costs in the database has the same ones, and then its
    predictions are the same too.
    """
    return {
        table: [{name: row[name] for name in row.keys() - _TIMED - _OF_THE_RUN} for row in rows(home, table)]
        for table in ("score", "cost", "option", "distillation", "trial")
    }


def files(home: Path) -> dict[Path, int]:
    """Whatever a rerun would take for finished work, with the moment it was written."""
    kept = [path for name in ("library", "children", "exports") for path in (home / name).rglob("*") if path.is_file()]
    shown = [path for path in kept if not any(part.startswith(".") for part in path.relative_to(home).parts)]
    return {path: path.stat().st_mtime_ns for path in shown}


def assert_files_are_whole(home: Path) -> None:
    for path in files(home):
        if path.suffix == ".safetensors":
            load_file(path)


def _finished(folder: Path) -> Path:
    done = nas(folder / "home", "search", job(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with job.yaml, its `home` after a whole search, and its `output`. To be read, not written."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # All workers share one search: the first that needs it makes it.
    folder /= "finished"
    with FileLock(f"{folder}.lock"):
        if not (folder / "output").is_file():
            folder.mkdir(exist_ok=True)
            _finished(folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` that a test may change."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def timed(finished: Path, tmp_path: Path) -> Path:
    """A folder with the same job, and a home that holds nothing but the finished search's costs."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(finished / "job.yaml", tmp_path)
    shutil.copy(finished / "home/nas.db", home)
    with sqlite3.connect(home / "nas.db") as connection:
        for table in ("failure", "stage", "trial", "option", "search", "score", "distillation"):
            connection.execute(f"DELETE FROM {table}")
    connection.close()
    return tmp_path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """`nas` as the installed script calls it, but in this process, where torch is loaded already.

    Anything but a clear end comes through as it is.
    """

    def run(home: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        for name, value in environment(home).items():
            monkeypatch.setenv(name, value)
        line = ["nas", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", line)
        capsys.readouterr()
        on_stop = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, on_stop)
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(line, ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray that this process starts once for all tests of a file, and whose workers load what they need once. Only for
    commands in this process."""
    with Cluster("local") as cluster:
        cluster.places(cpus=1, gpus=0)
        yield


@pytest.fixture
def mistake(here: Here, tmp_path: Path) -> Callable[[Sequence[str | Path]], str]:
    """The message of `nas` about a mistake: see `the_error`."""

    def run(arguments: Sequence[str | Path]) -> str:
        done = here(tmp_path / "home", *arguments)
        assert done.returncode in (1, 2)
        return the_error(done.stderr)

    return run


def the_error(said: str) -> str:
    """The one error among what was written to stderr, and the last thing there."""
    assert "Traceback" not in said, said
    _, begin, error = f"\n{said}".partition("\nerror: ")
    assert begin, said
    assert "\nerror: " not in error, said
    return f"error: {error.strip()}"
