"""Where and how a model is served: the conditions every time is measured under. Standard library only.

Knows nothing of the machine itself: `hardware.py` does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cost_models.errors import ScenarioError

_BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}
_GGUF = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k")
"""The precisions of `blocklib/formats/gguf_types.py`, which this file does not import, as it loads no library."""
_LLAMA_CPP_BYTES = 2
"""llama.cpp computes in f16, whatever the type of the weights."""
_CACHE_BLOCKS = {
    "f16": (1, 2),
    "bf16": (1, 2),
    "f32": (1, 4),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}
"""llama.cpp's types of keys and values: the numbers of a block, and its bytes."""
ENGINES: Mapping[str, tuple[str, ...]] = {
    "torch": tuple(_BYTES_PER_VALUE),
    "torch_compile": tuple(_BYTES_PER_VALUE),
    "llama_cpp": _GGUF,
    "vllm": tuple(_BYTES_PER_VALUE),
}
"""The engines, and the names that each has for the types it can hold weights in."""
KV_CACHES: Mapping[str, tuple[str, ...]] = {"llama_cpp": tuple(_CACHE_BLOCKS)}
"""The names of the types that an engine can hold keys and values in, whatever the type of the weights; the usual one
first. The other engines hold them in the type of the weights."""
USUAL_DTYPE: Mapping[str, str] = {
    "torch": "float32",
    "torch_compile": "float32",
    "llama_cpp": "q8_0",
    "vllm": "bfloat16",
}
"""The type of the weights in an engine if nothing else is asked for."""
_DEVICE = re.compile(r"cpu|mps|(cuda|xpu)(:\d+)?")


@dataclass(frozen=True)
class Scenario:
    """A batch of requests that come in together: each has `prompt_tokens`, and is answered with `generated_tokens`.

    The first generated token comes out of the prefill; each other one takes a decode step. `threads` are torch's on
    the CPU; None means all cores this process may use. `engine` runs the model, and `dtype` is its own name for the
    type of the weights. `tensor_parallel` is the number of GPUs among which vLLM divides each layer. `kv_cache` is the
    engine's name for the type of keys and values; None: its usual one, which is None whenever it is given. Raises
    ScenarioError where a value makes no sense.
    """

    device: str
    dtype: str
    batch: int
    prompt_tokens: int
    generated_tokens: int
    threads: int | None = None
    engine: str = "torch"
    tensor_parallel: int = 1
    kv_cache: str | None = None

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise ScenarioError(f"device {self.device!r} is not one of torch's; use cpu, cuda, cuda:1, xpu or mps")
        if self.engine not in ENGINES:
            raise ScenarioError(f"engine {self.engine!r} is not one of {', '.join(ENGINES)}")
        if self.dtype not in ENGINES[self.engine]:
            names = ", ".join(ENGINES[self.engine])
            raise ScenarioError(f"dtype {self.dtype!r} is not supported by the engine {self.engine}; use {names}")
        for name in ("batch", "prompt_tokens", "generated_tokens"):
            if getattr(self, name) < 1:
                raise ScenarioError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise ScenarioError(f"threads is {self.threads}; it must be at least 1, or None for all cores")
        if self.tensor_parallel < 1 or (self.tensor_parallel > 1 and self.engine != "vllm"):
            raise ScenarioError(
                f"tensor_parallel is {self.tensor_parallel}; it must be at least 1, and only vllm divides layers among "
                f"GPUs, not {self.engine}"
            )

        if self.kv_cache is not None:
            check_kv_cache(self.kv_cache, self.engine)
            if self.kv_cache == KV_CACHES[self.engine][0]:
                object.__setattr__(self, "kv_cache", None)  # one spelling for one scenario

    def __str__(self) -> str:
        return self.key()

    @property
    def context_tokens(self) -> int:
        """Tokens one sequence holds at the end."""
        return self.prompt_tokens + self.generated_tokens

    @property
    def cache_type(self) -> str:
        """The type of keys and values, by the engine's name."""
        return self.kv_cache or KV_CACHES.get(self.engine, (self.dtype,))[0]

    def keeping(self, cache: str) -> "Scenario":
        """The same with keys and values of that type; "": of its own."""
        return replace(self, kv_cache=cache) if cache else self

    @property
    def cache_block(self) -> int:
        """How many numbers of a head's keys or values are stored together: a head must be a multiple of it."""
        return _CACHE_BLOCKS[self.cache_type][0] if self.engine in KV_CACHES else 1

    def cache_bytes(self, values: int) -> int:
        """The bytes of so many keys and values, to the byte. Raises ScenarioError where they make no whole blocks."""
        if self.engine not in KV_CACHES:
            return values * self.bytes_per_value
        numbers, size = _CACHE_BLOCKS[self.cache_type]
        if values % numbers:
            raise ScenarioError(f"kv_cache {self.cache_type} stores {numbers} numbers together, not {values}")
        return values // numbers * size

    @property
    def bytes_per_value(self) -> int:
        """Bytes of a number that is computed."""
        return _LLAMA_CPP_BYTES if self.engine == "llama_cpp" else _BYTES_PER_VALUE[self.dtype]

    def key(self) -> str:
        """Its one spelling: equal scenarios, and no others, have the same."""
        threads = "all" if self.threads is None else self.threads
        engine = "" if self.engine == "torch" else f",engine={self.engine}"
        parallel = "" if self.tensor_parallel == 1 else f",tensor_parallel={self.tensor_parallel}"
        cache = "" if self.kv_cache is None else f",kv_cache={self.kv_cache}"
        return (
            f"{self.device},{self.dtype},batch={self.batch},prompt={self.prompt_tokens},"
            f"generated={self.generated_tokens},threads={threads}{engine}{parallel}{cache}"
        )


def check_kv_cache(kv_cache: str, engine: str) -> None:
    """Raise ScenarioError where the engine cannot hold keys and values in this type."""
    if engine not in KV_CACHES:
        raise ScenarioError(
            f"the engine {engine} holds keys and values in the type of the weights; leave out kv_cache, which is "
            f"{kv_cache!r}, or serve by {' or '.join(KV_CACHES)}"
        )
    if kv_cache not in KV_CACHES[engine]:
        names = ", ".join(KV_CACHES[engine])
        raise ScenarioError(f"the engine {engine} holds no keys and values in {kv_cache!r}; use one of {names}")
