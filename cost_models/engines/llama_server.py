"""llama.cpp's server in a process of its own, started, asked and stopped."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from cost_models.engines.process import EngineProcess
from cost_models.errors import EngineStoppedError

_OPENER = build_opener(ProxyHandler({}))
"""Asks this machine itself, whatever proxy the environment names."""


class LlamaServer(EngineProcess):
    """A llama.cpp server in a process of its own, asked over HTTP.

    Raises EngineStoppedError where it does not start; so does every question after it has ended.
    """

    def __init__(self, settings: dict[str, Any]):
        self._file = settings["file"]
        super().__init__("llama.cpp", self._file, server_command(settings))
        self.address = self.first

    def ask(self, path: str, question: dict[str, Any]) -> Any:
        """POST a question as JSON to a path such as `/completion`, and read the answer."""
        request = Request(f"{self.address}{path}", json.dumps(question).encode(), {"Content-Type": "application/json"})
        try:
            with _OPENER.open(request) as answer:
                return json.load(answer)
        except HTTPError as error:
            raise EngineStoppedError(f"llama.cpp on {self._file}: {error.read().decode(errors='replace')}") from error
        except (OSError, HTTPException) as error:
            raise self.stopped() from error


def server_command(settings: dict[str, Any]) -> list[str]:
    """The command that runs `llama_cpp_server.py` with these settings."""
    script = Path(__file__).with_name("llama_cpp_server.py")
    return [sys.executable, "-I", str(script), json.dumps(settings)]


def cache_flags(kv_cache: str | None) -> list[str]:
    """The options of llama.cpp's own `llama-server` for keys and values in a type; None: its usual one, without any."""
    if kv_cache is None:
        return []
    # Values in blocks need flash attention.
    flash = ["--flash-attn", "on"] if "q" in kv_cache else []
    return ["--cache-type-k", kv_cache, "--cache-type-v", kv_cache, *flash]


@contextmanager
def llama_server(**settings: Any) -> Iterator[LlamaServer]:
    """A server as `llama_cpp_server.py` takes its settings, until the end of the block."""
    server = LlamaServer(settings)
    try:
        yield server
    finally:
        server.close()
