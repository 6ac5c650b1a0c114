"""An engine's own OpenAI-compatible server on a model: llama.cpp's on a GGUF file, vLLM's on a folder."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.request import ProxyHandler, build_opener

from cost_models.engines.engines import engine_of
from cost_models.engines.llama_server import cache_flags, server_command
from cost_models.engines.vllm_process import interpreter, version_in
from cost_models.errors import EngineStoppedError
from nas.errors import UsageError
from nas.serving.artefact import Artefact
from nas.serving.vllm_folder import serving_flags

_LOOK_EVERY_S = 0.1
_END_S = 20.0
"""How long a server may take to end by itself."""
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens."""

    host: str = "127.0.0.1"
    port: int = 8080

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise UsageError(f"port {self.port} does not exist; give one from 1 to 65535")

    @property
    def address(self) -> str:
        """How this machine reaches it."""
        host = _EVERYWHERE.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def check_free(self) -> None:
        """Raise UsageError where another program listens there, or the host is none of this machine's."""
        try:
            family, kind, *_, place = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(place)
        except OSError as error:
            why = error.strerror or str(error)
            raise UsageError(
                f"cannot listen at {self.host}, port {self.port}: {why}; give another --port or --host"
            ) from error


@dataclass(frozen=True)
class Served:
    """A server that answers. `name` is the model's, as a request names it."""

    name: str
    engine: str
    address: str
    has_chat_template: bool
    process: "subprocess.Popen[bytes]"

    @property
    def curl(self) -> str:
        """A command that asks it: a chat where the model has a template for one."""
        asked: dict[str, object] = {"model": self.name, "max_tokens": 64}
        asked |= {"messages": [{"role": "user", "content": "Hello"}]} if self.has_chat_template else {"prompt": "Hello"}
        path = "chat/completions" if self.has_chat_template else "completions"
        kind = shlex.quote("Content-Type: application/json")
        return f"curl {self.address}/v1/{path} -H {kind} -d {shlex.quote(json.dumps(asked))}"

    def wait(self) -> None:
        """Until the server ends by itself, which raises EngineStoppedError."""
        raise _ended(self.engine, self.process.wait())


@contextmanager
def served(model: Artefact, engine: str | None, endpoint: Endpoint) -> Iterator[Served]:
    """Start the server, and wait until it answers; at the end of the block it is gone.

    Its output goes to standard error. Raises UsageError where the engine does not load such a model or the port is
    taken, MissingEngineError with what to type where it is not installed, EngineStoppedError where it ends.
    """
    own = "llama_cpp" if model.is_gguf else "vllm"
    if engine is not None and engine != own:
        raise UsageError(f"{model.path} is {model.form}, which {own} serves, not {engine}")
    if model.is_gguf:
        _ = model.header  # a file that is cut is refused in words
    endpoint.check_free()
    command = _command(model, endpoint)
    # llama.cpp's own lines are on standard error; vLLM's are on both.
    heard = subprocess.DEVNULL if model.is_gguf else sys.stderr.fileno()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=heard, process_group=0)
    try:
        _wait_until_it_answers(own, endpoint.address, process)
        yield Served(_alias(model), own, endpoint.address, model.has_chat_template, process)
    finally:
        _end(process)


def _command(model: Artefact, endpoint: Endpoint) -> list[str]:
    host_port = ["--host", endpoint.host, "--port", str(endpoint.port)]
    if not model.is_gguf:
        name = ["--served-model-name", _alias(model)]
        line = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model.path), *name, *host_port]
        version_in(interpreter())
        return [interpreter(), *line, *serving_flags(model)]
    if own := shutil.which("llama-server"):
        line = ["--model", str(model.path), "--alias", _alias(model), *cache_flags(model.kv_cache)]
        return [own, *line, *host_port]
    engine_of("llama_cpp").check_installed()
    cache = {} if model.kv_cache is None else {"cache": model.kv_cache}
    return server_command({"file": str(model.path), "host": endpoint.host, "port": endpoint.port} | cache)


def _alias(model: Artefact) -> str:
    """The name that a request gives: a folder's, or a file's without its ending."""
    path = model.path.resolve()
    return path.stem if model.is_gguf else path.name


def _wait_until_it_answers(engine: str, address: str, process: "subprocess.Popen[bytes]") -> None:
    opener = build_opener(ProxyHandler({}))
    while True:
        if process.poll() is not None:
            raise _ended(engine, process.returncode)
        try:
            with opener.open(f"{address}/health", timeout=5):
                return
        except OSError:  # It does not listen yet, or says that it is still loading.
            time.sleep(_LOOK_EVERY_S)


def _ended(engine: str, status: int) -> EngineStoppedError:
    return EngineStoppedError(f"the server of {engine} ended with status {status}; its own lines above say why")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdin is not None:
        process.stdin.close()
