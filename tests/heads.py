"""Ray heads and nodes of our own on this machine, each a process group with its ports and its folder apart."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from searches import environment

_RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Head:
    """The addresses of its dashboard and of the cluster."""

    dashboard: str
    cluster: str


@contextmanager
def a_head(cpus: int = 2, agent: int | None = None) -> Iterator[Head]:
    """`agent`: a port for its agent."""
    with _folder() as folder:
        port, dashboard, client, free = free_ports(4)
        line = [_RAY, "start", "--head", "--block", f"--num-cpus={cpus}", "--disable-usage-stats",
                f"--temp-dir={folder}", f"--port={port}", f"--dashboard-port={dashboard}",
                f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent or free}"]  # fmt: skip
        with _running(line, folder) as process:
            _wait_until_listening(process, dashboard, folder / "output")
            yield Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}")


@contextmanager
def a_node(head: Head, cpus: int = 1, before: Sequence[str] = ()) -> Iterator["subprocess.Popen[bytes]"]:
    """Another node of the head's cluster; `before` are the words of a command that starts it."""
    with _folder() as folder:
        line = [_RAY, "start", "--block", f"--address={head.cluster}", f"--num-cpus={cpus}", "--disable-usage-stats"]
        with _running([*before, *line], folder, RAY_AUTH_MODE="token") as process:
            _wait_until(lambda: "--block" in (folder / "output").read_text(), process, folder / "output")
            yield process


def end(process: "subprocess.Popen[bytes]") -> None:
    """At once: asked to end, it takes half a minute."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    for left in family:
        with suppress(psutil.NoSuchProcess):
            left.kill()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="r_", dir="/tmp"))  # Ray's sockets lie in it, and their paths must be short
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(line: Sequence[str], folder: Path, **more: str) -> Iterator["subprocess.Popen[bytes]"]:
    # A head is often started by its full path: what `python` means there is none of a job's business.
    known = environment(folder) | {"PATH": "/usr/bin:/bin"} | more
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(line, env=known, stdout=output, stderr=output, process_group=0)
    try:
        yield process
    finally:
        end(process)


def _wait_until_listening(process: "subprocess.Popen[bytes]", port: int, output: Path) -> None:
    def listens() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    _wait_until(listens, process, output)


def _wait_until(begun: Callable[[], bool], process: "subprocess.Popen[bytes]", output: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if begun():
            return
        time.sleep(0.2)
    pytest.fail(f"it did not start:\n{output.read_text()}")
