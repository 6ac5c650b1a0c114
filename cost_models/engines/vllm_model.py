"""A model in vLLM, in a process of its own, and its passes under vLLM's own clock.

The clock is vLLM's: the times of its first and last tokens, of all sequences generated together. CUDA graphs and
compiled code are vLLM's own; on a CPU it runs eagerly. No prefixes are kept from one pass for the next.
"""

import math
import os
from typing import Any

from cost_models.engines.prompts import Prompts
from cost_models.engines.vllm_process import GPUS, VllmProcess, visible_gpu
from cost_models.errors import EngineStoppedError, TimingError
from cost_models.hardware import usable_cores
from cost_models.scenario import Scenario

_SPARE_CACHE_BYTES = 2**28
_BLOCK_TOKENS = 128
"""A sequence takes its cache in blocks of so many tokens on a CPU, and of fewer on most GPUs."""
_LIBRARIES_BYTES = 2**30
"""The memory of a process beside its weights and its cache."""
_SHARE_OF_GPU = 0.01
"""vLLM does not start if less than this share of a GPU's memory is free. It has no other use here, where the size of
the cache is given, and `memory.py` asks for the memory that a model takes."""
_LEAST_BATCHED_TOKENS = 2048
"""vLLM's own number of tokens that enter a pass together."""


class VllmModel:
    """A model for vLLM to hold, and its size of vocabulary. Its process runs from the first question until `stop`.

    `name` is what errors call it, `settings` those of `vllm_worker.py`. `held_bytes`: the memory that it takes on each
    device while its process runs.
    """

    def __init__(
        self, name: str, settings: dict[str, Any], environment: dict[str, str], vocabulary: int, held_bytes: int
    ):
        self.vocabulary, self.held_bytes = vocabulary, held_bytes
        self._name, self._settings, self._environment = name, settings, environment
        self._process: VllmProcess | None = None
        self._ended_s, self._ended_bytes = 0.0, 0

    @property
    def runs(self) -> bool:
        return self._process is not None

    def ask(self, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        """As `VllmProcess.ask`. The first answer of a process is thrown away, since it allocates and compiles."""
        if self._process is None:
            self._process = VllmProcess(self._name, self._settings, self._environment)
            self._answer(prompts, tokens)
        return self._answer(prompts, tokens)

    def _answer(self, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        assert self._process is not None
        try:
            return self._process.ask(prompts, tokens)
        except EngineStoppedError:
            self._process = None  # It has ended, and is closed.
            raise

    def used_s(self) -> float:
        """CPU seconds that its processes have used so far."""
        return self._ended_s + (0.0 if self._process is None else self._process.used_s())

    def peak_bytes(self) -> int:
        """The most main memory that a process of it has held at once, libraries and loading included."""
        return max(self._ended_bytes, 0 if self._process is None else self._process.peak_bytes())

    def stop(self) -> None:
        """End its process, if it runs; another question starts another one."""
        if self._process is not None:
            self._ended_s, self._ended_bytes = self.used_s(), self.peak_bytes()
            process, self._process = self._process, None
            process.close()


class VllmSubject:
    """A model in vLLM ready to be timed. `stays`: its process may run while that of `beside` does; else it stops that
    one first."""

    def __init__(self, model: VllmModel, beside: VllmModel, scenario: Scenario, stays: bool = True):
        self._model, self._beside, self._stays = model, beside, stays
        self._prompts = Prompts.of(scenario, model.vocabulary)

    def used_s(self) -> float:
        """CPU seconds that its processes have used so far."""
        return self._model.used_s()

    def prefill(self) -> float:
        """Seconds from an empty cache to the first token of every sequence."""
        return self._asked(self._prompts.to_prefill, 1)["prefill_s"]

    def decode(self) -> float:
        """Seconds of one step of all sequences, the mean of those in the middle of an answer."""
        return self._asked(self._prompts.to_decode, self._prompts.steps + 1)["decode_s"] / self._prompts.steps

    def _asked(self, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        if not self._stays and self._beside is not self._model:
            self._beside.stop()
        found = self._model.ask(prompts, tokens)
        if found["tokens"] != tokens or found["prefill_s"] <= 0 or (tokens > 1 and found["decode_s"] <= 0):
            raise TimingError(f"vLLM was asked for {tokens} tokens of each sequence, and answered {found}")
        if found["passes"] != 1:
            raise TimingError(
                f"vLLM took {len(prompts)} prompts in {found['passes']} passes, and a prefill is one; lower the batch"
            )
        if found["preemptions"]:
            raise TimingError(
                f"vLLM's cache did not hold {len(prompts)} sequences at once, and it computed {found['preemptions']} "
                "of them again; lower the batch"
            )
        return found


def arguments(scenario: Scenario, cached_values: int) -> dict[str, Any]:
    """The arguments of vLLM's `LLM`; its server's defaults hold for all others. `cached_values`: keys and values that
    all layers keep of a token."""
    tokens = math.ceil(scenario.context_tokens / _BLOCK_TOKENS) * _BLOCK_TOKENS * scenario.batch
    return {
        "skip_tokenizer_init": True,
        "dtype": scenario.dtype,
        "enforce_eager": scenario.device == "cpu",
        "tensor_parallel_size": scenario.tensor_parallel,
        "max_model_len": scenario.context_tokens,
        "max_num_seqs": scenario.batch,
        # All prompts enter one pass, which is what a prefill is here.
        "max_num_batched_tokens": max(_LEAST_BATCHED_TOKENS, scenario.batch * scenario.context_tokens),
        "enable_prefix_caching": False,
        "kv_cache_memory_bytes": 2 * cached_values * tokens * scenario.bytes_per_value + _SPARE_CACHE_BYTES,
        "gpu_memory_utilization": _SHARE_OF_GPU,
        "disable_log_stats": False,
    }


def held_bytes(weight_bytes: int, scenario: Scenario, given: dict[str, Any]) -> int:
    """The memory that such a model takes on each device. The size of the cache is that on each device."""
    cache_bytes: int = given["kv_cache_memory_bytes"]
    return weight_bytes // scenario.tensor_parallel + cache_bytes + _LIBRARIES_BYTES


def environment(scenario: Scenario) -> dict[str, str]:
    """Threads, no network, and no process for vLLM's core alone, which would schedule the first prompt before it had
    the last."""
    found = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if scenario.device == "cpu":
        threads = str(scenario.threads or usable_cores())
        found |= {"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    elif ":" in scenario.device:
        found[GPUS] = visible_gpu(scenario.device, os.environ.get(GPUS))
    return found
