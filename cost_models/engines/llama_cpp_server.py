"""llama.cpp's own server on one GGUF file, in a process of its own. This runs as a script.

`python llama_cpp_server.py SETTINGS`, which is JSON: `file`, and optionally `host`, `port`, `threads`, `cache` (the
type of keys and values, f16) and `exact` (no flash attention, which rounds to half precision); to time or check a model
also `sequences`, `context_tokens` of each sequence and `batch_tokens` (the most tokens that enter a pass together).
Prints the address that it listens on, and serves until its standard input ends. Needs xllamacpp alone.

One server per process: the threads of a second one in the same process slow both down several times over.
"""

import json
import sys
from typing import Any

import xllamacpp  # type: ignore[import-untyped]


def parameters(asked: dict[str, Any]) -> Any:
    """The settings of llama.cpp; what is not set here is as its own server has it."""
    found = xllamacpp.CommonParams()
    found.model.path = asked["file"]
    found.hostnames = [asked.get("host", "127.0.0.1")]
    found.port = asked.get("port", 0)
    found.verbosity = 0
    if "threads" in asked:
        found.cpuparams.n_threads = found.cpuparams_batch.n_threads = asked["threads"]
    cache = asked.get("cache", "f16")
    found.cache_type_k = found.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{cache.upper()}")
    flash = xllamacpp.llama_flash_attn_type
    if asked.get("exact"):
        found.flash_attn_type = flash.LLAMA_FLASH_ATTN_TYPE_DISABLED
    elif "q" in cache:
        found.flash_attn_type = flash.LLAMA_FLASH_ATTN_TYPE_ENABLED  # values in blocks need it
    if "sequences" in asked:
        _alone(found, asked)
    return found


def _alone(found: Any, asked: dict[str, Any]) -> None:
    """On the CPU, for so many sequences and no more."""
    found.n_parallel = asked["sequences"]
    found.n_ctx = asked["sequences"] * asked["context_tokens"]
    found.n_batch = max(found.n_batch, asked.get("batch_tokens", 0))
    found.n_gpu_layers = 0
    found.fit_params = False  # else it lowers the context where it thinks that memory is short
    found.cache_ram_mib = 0  # no prompts kept beside the context


def main() -> None:
    server = xllamacpp.Server(parameters(json.loads(sys.argv[1])))
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
